"""The study on Optuna: spaces, samplers, pruning, resuming."""
