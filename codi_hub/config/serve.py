"""Options of the server."""

from __future__ import annotations

from codi_hub.config.model import Options, option
from codi_hub.config.values import ADAPTER_MEMORY, ByteSize, Device, Duration, Precision


class ServeOptions(Options):
    """Where the server listens, what it serves, and what bounds it."""

    host: str = option("127.0.0.1", "--host")
    """Address to listen on; beyond this machine only with a token."""
    port: int = option(8000, "--port", ge=0, le=65535)
    """Port; 0 takes a free one."""
    token: str | None = option(None, "--token", min_length=1)
    """What clients have to send as their API key (default: CODI_SERVE_TOKEN, or none: any key is accepted)."""
    insecure: bool = option(False, "--insecure")
    """Listen beyond this machine without a token."""
    origins: tuple[str, ...] = option((), "--cors", metavar="ORIGIN", repeats=True)
    """Web page that may call the API, such as https://example.org; repeat for more."""
    bases: tuple[str, ...] = option((), "--base", metavar="NAME", repeats=True)
    """Base to serve; repeat for more (default: the one in use)."""
    preload: tuple[str, ...] = option((), "--preload", metavar="REF", repeats=True)
    """Adapter to load before listening; repeat for more (default: adapters load with their first request)."""
    page: bool = option(True, "--page/--no-page")
    """Show a page for images at the address itself."""
    max_queue: int = option(64, "--max-queue", ge=1, le=100_000, panel="Limits")
    """Images that may wait; more are answered 429."""
    max_pixels: int = option(16_000_000, "--max-pixels", ge=64, panel="Limits")
    """Pixels of a request's inputs together, and of a result."""
    max_body: ByteSize = option(64_000_000, "--max-body", panel="Limits", metavar="SIZE")
    """Size of a request, such as 64MB."""
    max_time: Duration = option(600.0, "--max-time", panel="Limits", metavar="TIME")
    """Time that a request may take, to arrive and to be answered, such as 10m."""
    device: Device = option("auto", "--device", panel="Machine", metavar="NAME")
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Precision = option("auto", "--dtype", panel="Machine")
    """Precision of the networks."""
    adapter_memory: ByteSize = option(ADAPTER_MEMORY, "--adapter-memory", panel="Machine", metavar="SIZE")
    """Memory for adapters that stay loaded, such as 500MB (default: 2GB)."""
