"""Cost of a large run on paper: measured figures of each part, a simulation of the parts in a row, what saturates."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

SIMULATED = 20_000  # images; the rate is steady long before
DAY = 86_400  # s


@dataclass(frozen=True)
class Figures:
    """What one part can do. The defaults of rate, sizes and registry were measured, those of the store are assumed.

    Attributes:
        images_per_s: of one device, loading and saving beside it.
        input_bytes, output_bytes: of an image's files.
        store_latency: s of one request to the store; an image needs two, of which each device has `in_flight`.
        in_flight: requests of a device at a time (two threads that load, two that save).
        store_bytes_per_s: of the store or the network to it, for all devices.
        registry_writes: items/s of the registry, for all devices.
        row_bytes: of a row in the registry, indexes included.
    """

    images_per_s: float = 1.7
    input_bytes: float = 3_200
    output_bytes: float = 40_000
    store_latency: float = 0.03
    in_flight: float = 4
    store_bytes_per_s: float = 10e9
    registry_writes: float = 500
    row_bytes: float = 341


def limits(given: Figures, devices: int) -> dict[str, float]:
    """Return the images/s that each part allows."""
    return {
        "devices": devices * given.images_per_s,
        "store latency": devices * given.in_flight / (2 * given.store_latency),
        "store bytes": given.store_bytes_per_s / (given.input_bytes + given.output_bytes),
        "registry": given.registry_writes,
    }


def simulated(given: Figures, devices: int, images: int = SIMULATED) -> float:
    """Return the images/s of a simulation: each image passes a device, the store and the registry, each in turn.

    Every part serves one image at a time, devices as many as there are, and the store's requests those in flight; an
    image waits for the first that is free. Loading and saving of one image go on beside the computation of others, and
    a device takes its next image only while fewer than `AHEAD` of its images wait to be saved.
    """
    free = [0.0] * devices
    slots = [0.0] * int(devices * given.in_flight)
    heapq.heapify(free)
    heapq.heapify(slots)
    store = registry = 0.0
    waiting: list[float] = []  # ends of images that are not saved yet
    bytes_each = (given.input_bytes + given.output_bytes) / given.store_bytes_per_s
    for _ in range(images):
        start = heapq.heappop(free)
        if len(waiting) >= AHEAD * devices:
            start = max(start, heapq.heappop(waiting))
        end = start + 1 / given.images_per_s
        heapq.heappush(free, end)
        asked = max(end, heapq.heappop(slots)) + 2 * given.store_latency
        heapq.heappush(slots, asked)
        store = max(store, asked) + bytes_each
        registry = max(registry, store) + 1 / given.registry_writes
        heapq.heappush(waiting, registry)
    return images / registry


AHEAD = 8  # images of a device that may wait


def table(given: Figures) -> str:
    """Return the table of the docs, in Markdown."""
    lines = [
        "| images | devices | images/s | simulated | time | saturates first | store | registry |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for devices in (1, 8, 1000):
        allowed = limits(given, devices)
        first = min(allowed, key=lambda name: allowed[name])
        rate, check = allowed[first], simulated(given, devices)
        for images, name in ((10**6, "1 M"), (10**9, "1 B")):
            stored = images * (given.input_bytes + given.output_bytes) / 1e12
            rows = images * given.row_bytes / 1e9
            lines.append(
                f"| {name} | {devices:,} | {rate:,.1f} | {check:,.1f} | {images / rate / DAY:,.2f} days | {first} | "
                f"{stored:,.1f} TB | {rows:,.1f} GB |"
            )
    return "\n".join(lines)
