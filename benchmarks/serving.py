"""The server under load, on the bundled base: `python -m benchmarks.serving`.

Clients share a server, and each has one request at a time. Measured in one run of one process: requests per second of
eight clients over three adapters against one client, what the API adds to `Hub.generate`, and the memory after many
requests.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from benchmarks.adding import resident
from codi_hub.config.serve import ServeOptions
from codi_hub.hub import Hub
from codi_hub.serve.server import Server, serve

ADAPTERS = ("superres", "deblur", "inpaint")
SIDE = 64  # px of a result


def picture(adapter: str) -> Image.Image:
    """Return an input whose result has `SIDE` pixels a side."""
    side = SIDE // 4 if adapter == "superres" else SIDE
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    if adapter == "inpaint":
        image.putalpha(Image.new("L", image.size, 0))
    return image


def files(adapter: str) -> bytes:
    """Return the input as PNG."""
    buffer = io.BytesIO()
    picture(adapter).save(buffer, "png")
    return buffer.getvalue()


def ask(url: str, adapter: str, data: bytes, session: requests.Session) -> float:
    """Send one request; return its seconds."""
    begun = time.perf_counter()
    answer = session.post(f"{url}/v1/images/edits", data={"model": adapter, "seed": "1"}, files={"image": data})
    answer.raise_for_status()
    return time.perf_counter() - begun


def load(url: str, clients: int, count: int) -> tuple[float, list[float]]:
    """Send `count` requests from some clients, over all adapters in turn; return the seconds of all, and of each."""
    inputs = {adapter: files(adapter) for adapter in ADAPTERS}
    local = threading.local()

    def one(number: int) -> float:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        adapter = ADAPTERS[number % len(ADAPTERS)]
        return ask(url, adapter, inputs[adapter], local.session)

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = [*pool.map(one, range(count))]
    return time.perf_counter() - begun, each


def p95(seconds: Sequence[float]) -> float:
    """Return the 95th percentile in milliseconds."""
    return 1000 * statistics.quantiles(seconds, n=20)[-1]


def overhead(url: str, home: Path, count: int = 40) -> float:
    """Return the milliseconds that a request takes beyond `Hub.generate` of its image: the difference of medians."""
    session, data, image = requests.Session(), files("deblur"), picture("deblur")
    asked, generated = [], []
    with Hub.open(home) as hub:
        for _ in range(count):
            begun = time.perf_counter()
            hub.generate("deblur", image, seeds=1)
            generated.append(time.perf_counter() - begun)
            asked.append(ask(url, "deblur", data, session))
    return 1000 * (statistics.median(asked) - statistics.median(generated))


def measure(url: str, home: Path, count: int) -> list[str]:
    """Return the lines of the report."""
    load(url, 8, 3 * 8)  # loads the networks
    alone, each_alone = load(url, 1, count // 4)
    together, each = load(url, 8, count // 4)
    ratio = (count // 4 / together) / (count // 4 / alone)
    lines = [
        f"1 client: {count // 4 / alone:.1f} requests/s, p95 {p95(each_alone):.0f} ms",
        f"8 clients over 3 adapters: {count // 4 / together:.1f} requests/s ({ratio:.2f} x), p95 {p95(each):.0f} ms",
        f"one request takes {overhead(url, home):.1f} ms longer than Hub.generate",
    ]
    before = resident("VmRSS")
    load(url, 8, count)
    growth = resident("VmRSS") / before - 1
    return [*lines, f"memory after {count} further requests: {growth:+.1%} of {before / 1e9:.2f} GB"]


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as temporary:
        home, ready, found = Path(temporary), threading.Event(), []

        def listening(url: str, server: Server) -> None:
            found.append((url, server))
            ready.set()

        thread = threading.Thread(target=serve, args=(ServeOptions(port=0), listening, home))
        thread.start()
        ready.wait()
        (url, server) = found[0]
        try:
            print("\n".join(measure(url, home, count)))
        finally:
            server.stop()
            thread.join()


if __name__ == "__main__":
    main()
