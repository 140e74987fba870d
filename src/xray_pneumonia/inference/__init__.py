"""Trained models answer: raw pixels -> probability, label, abstention; knows neither MLflow nor commands."""
