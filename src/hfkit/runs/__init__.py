"""A run's directory: manifest, status, lock, results."""
