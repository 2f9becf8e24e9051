"""From a name to examples: sources, readers, columns, labels, splits."""
