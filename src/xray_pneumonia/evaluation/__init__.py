"""Turns predictions into metrics with intervals, decisions, figures and reports."""
