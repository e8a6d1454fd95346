"""Base models: one file per family, behind one protocol."""
