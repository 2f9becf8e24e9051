"""A look before compute is spent: data, tokenizers, the plan of a run, the machine."""
