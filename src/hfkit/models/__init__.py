"""Models and tokenizers: located, loaded, created, saved, exported."""
