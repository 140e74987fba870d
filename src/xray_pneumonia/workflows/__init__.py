"""The story of each verb, top to bottom."""
