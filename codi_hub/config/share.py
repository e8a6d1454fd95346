"""Options of taking in and giving away adapters: install, pull, push."""

from __future__ import annotations

from pathlib import Path

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


class PullOptions(InstallOptions):
    """How an adapter on a hub, or below an URL, is registered."""

    dry_run: bool = option(False, "--dry-run")
    """Check the adapter's record and say what would be registered."""


class PushOptions(Options):
    """How an adapter is written to a hub, or below an URL."""

    private: bool = option(False, "--private")
    """Create the hub's repository as a private one."""
    licence: str | None = option(None, "--licence", metavar="ID")
    """Licence of the adapter, by the hub's name such as apache-2.0 (default: the base's)."""
    examples: Path | None = option(None, "--examples", metavar="DIR")
    """Folder of up to 8 images to show on the card."""
    base: str | None = option(None, "--base")
    """Base of the adapter (default: the one in use)."""
    dry_run: bool = option(False, "--dry-run")
    """Say what would be written, and stop."""
