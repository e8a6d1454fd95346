"""Images: reading and writing, filters, metrics, contact sheets. No torch at import, no tasks."""
