"""Records runs in MLflow and reads them back; no other package imports MLflow."""
