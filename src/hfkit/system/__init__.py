"""The machine: terminal, disk, network, processes."""
