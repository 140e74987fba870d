"""Net + data -> weights."""
