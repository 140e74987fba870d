"""Honest, reproducible classification of chest X-rays into NORMAL and PNEUMONIA."""

__version__ = "0.1.0"
