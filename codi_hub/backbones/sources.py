"""Where a base's files come from: a diffusers folder, or a hub id whose snapshot is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codi_hub.errors import NotFound

FILES = ["*.json", "*.txt", "*.safetensors"]  # never a pickle


def local_folder(source: str) -> Path:
    """Return the folder of a base: `source` itself, or the hub snapshot of that id, downloaded if need be.

    Raises:
        NotFound: neither a diffusers folder nor a hub id that can be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotFound(f"{source} is a file: a base is a model folder or a hub id")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:  # noqa: BLE001 - the hub client raises a dozen unrelated kinds; all mean "cannot be had"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotFound(
            f"base {source!r} is neither a folder here nor a model that the hub could give: {reason}"
        ) from None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' progress bars and remarks on unused config entries while a model is loaded."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    bars = transformers_logging.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
