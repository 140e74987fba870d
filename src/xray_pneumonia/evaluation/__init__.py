"""Predictions -> numbers and pictures."""
