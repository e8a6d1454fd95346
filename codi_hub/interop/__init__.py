"""Formats of other tools: one module each."""
