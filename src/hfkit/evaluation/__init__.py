"""Scores: of a run, of a model on a file, of one file against another, of two systems side by side."""
