"""Build the HTML reports: figures, wording, model card, checklist."""
