"""From a recipe to a trained model; `train.py` is the run, read from top to bottom."""
