"""Numbers with a definition and, where resampling is sound, an interval."""
