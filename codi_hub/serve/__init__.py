"""Adapters behind an OpenAI-compatible HTTP API; the extra `serve` has what it needs."""
