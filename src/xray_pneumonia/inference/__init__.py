"""Trained models: gray images -> probability, label, abstention; knows neither training nor MLflow."""
