"""Numbers -> logits: nets that eat raw pixels; they know nothing of data or training."""
