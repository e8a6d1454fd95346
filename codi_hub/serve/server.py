"""The server: it listens, loads networks when they are needed, and ends without cutting off what it has begun."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from PIL import Image
from starlette.concurrency import run_in_threadpool

from codi_hub.catalog import Catalog
from codi_hub.config.serve import ServeOptions
from codi_hub.errors import CodiError, UsageError, system_reason
from codi_hub.hub import Hub
from codi_hub.interrupts import SIGNALS
from codi_hub.serve.api import Service, application
from codi_hub.serve.batch_store import BatchStore
from codi_hub.serve.batches import Batches
from codi_hub.serve.guard import Guard, is_loopback
from codi_hub.serve.metrics import Metrics
from codi_hub.serve.queue import Queue, Work

MAX_CONNECTIONS = 1000
HEADER_BYTES = 32 << 10
WAITING = 8  # inputs of the largest size that may wait


class Networks:
    """The loaded networks: a Hub per base, used by the queue's thread alone.

    Args:
        options: of the server.
        home: state folder; None: the default.
    """

    def __init__(self, options: ServeOptions, home: Path | None = None) -> None:
        self.options, self.home = options, home
        self._hubs: dict[str | None, Hub] = {}

    def hub(self, base: str | None) -> Hub:
        """Return the Hub of a base."""
        if base not in self._hubs:
            self._hubs[base] = Hub.open(self.home, base)
        return self._hubs[base]

    def preload(self) -> None:
        """Load the adapters that are to be ready before the first request. Raises CodiError."""
        options = self.options
        for name in options.preload:
            base, _, ref = name.rpartition("/")
            hub = self.hub(base or (options.bases[0] if options.bases else None))
            hub.use(ref, device=options.device, dtype=options.dtype, adapter_memory=options.adapter_memory)

    def generate(self, works: Sequence[Work]) -> Sequence[Image.Image]:
        """Generate the images of one batch."""
        first, options = works[0], self.options
        return self.hub(first.base).generate(
            [work.ref for work in works],
            [work.image for work in works],
            masks=[work.mask for work in works],
            prompts=[work.prompt for work in works],
            seeds=[work.seed for work in works],
            size=first.size,
            steps=first.steps,
            strength=[work.strength for work in works],
            options=first.options,
            device=options.device,
            dtype=options.dtype,
            adapter_memory=options.adapter_memory,
        )

    def close(self) -> None:
        """Close every registry."""
        for hub in self._hubs.values():
            hub.close()


class Server(uvicorn.Server):
    """uvicorn's server, which tells when it listens, and at the first signal begins nothing new."""

    def __init__(
        self, config: uvicorn.Config, guard: Guard, batches: Batches, on_listening: Callable[[str, Server], object]
    ) -> None:
        super().__init__(config)
        self.guard, self.batches, self.queue, self.on_listening = guard, batches, batches.service.queue, on_listening

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.on_listening(f"http://{f'[{host}]' if ':' in host else host}:{port}", self)

    def stop(self) -> None:
        """Begin nothing new, finish what is being generated, and end; called again, end at once."""
        self.force_exit = self.should_exit
        self.should_exit = self.guard.stopping = True

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Refuse what waits before the connections are waited for."""
        if self.guard.page:
            self.guard.page.stop()
        stopping = asyncio.create_task(run_in_threadpool(self._stop_work))
        await super().shutdown(sockets)
        await stopping

    def _stop_work(self) -> None:
        self.batches.begin_stop()
        self.queue.stop()
        self.batches.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.stop()

        in_main = threading.current_thread() is threading.main_thread()  # only that one can set a handler
        before = {number: signal.signal(number, stop) for number in SIGNALS if in_main}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(options: ServeOptions, on_listening: Callable[[str, Server], object], home: Path | None = None) -> None:
    """Serve until a signal comes, or `Server.stop` is called; then finish what is being generated.

    Args:
        options: where, what, and with which limits.
        on_listening: told the address, and given the server.
        home: state folder; None: the default.

    Raises:
        UsageError: an address beyond this machine without a token. CodiError: the address cannot be listened on, or an
            adapter to preload is not there.
    """
    if not (is_loopback(options.host) or options.token or options.insecure):
        raise UsageError(f"host {options.host}: others could use this server: set a token, or insecure")
    networks = Networks(options, home)
    with ExitStack() as closing:
        closing.callback(networks.close)
        catalog = closing.enter_context(Catalog.open(home))
        for base in options.bases:
            catalog.registry.bases.get(base)
        networks.preload()
        queue = Queue(networks.generate, options.max_queue, WAITING * options.max_pixels)
        metrics = Metrics(lambda: queue.length)
        queue.on_batch = metrics.batches.observe
        batches = Batches(Service(options, catalog, queue, metrics), BatchStore(home))
        closing.callback(batches.store.close)
        app = application(batches.service, batches)
        config = uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            log_config=None,
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=HEADER_BYTES,
            http="h11",
            ws="none",
            timeout_graceful_shutdown=math.ceil(options.max_time),  # for clients that do not read their answers
        )
        _run(Server(config, app, batches, on_listening), options)


def _run(server: Server, options: ServeOptions) -> None:
    try:
        server.run()
    except OSError as error:
        raise CodiError(f"{options.host}:{options.port} cannot be listened on: {system_reason(error)}") from error
    except SystemExit as error:  # uvicorn logs why it cannot start, and exits
        raise CodiError(
            f"{options.host}:{options.port} cannot be listened on: the port is in use, or not allowed; choose another"
        ) from error
