"""Nets: raw pixels -> logits; they know nothing of data or training."""
