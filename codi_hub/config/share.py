"""Options of taking in and giving away adapters: install, pull, push."""

from __future__ import annotations

from codi_hub.config.model import Options, option


class InstallOptions(Options):
    """How an adapter that was made elsewhere is registered."""

    task: str | None = option(None, "--task", metavar="NAME")
    """Task to register it for, of the kind that it was trained for (default: the one that it names)."""
    name: str | None = option(None, "--name", metavar="TAG")
    """Tag for the version."""
    base: str | None = option(None, "--base")
    """Base to register it for (default: the one in use)."""
    allow_base_mismatch: bool = option(False, "--allow-base-mismatch")
    """Register it for another base of its family, such as a fine-tune."""
