"""From YAML, flags and `--set` to one validated recipe."""
