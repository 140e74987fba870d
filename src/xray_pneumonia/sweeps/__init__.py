"""Runs hyperparameter searches as Optuna studies: spaces, samplers, pruning, resuming."""
