"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SIZES = (1, 2, 4, 8)  # of batches


class Metrics:
    """Counters of one server.

    Args:
        waiting: returns the number of images that wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = to = CollectorRegistry()
        self.requests = Counter("codi_requests", "Answered requests", ["route", "status"], registry=to)
        self.seconds = Histogram("codi_request_seconds", "Time from a request to its answer", ["route"], registry=to)
        self.images = Counter("codi_images", "Generated images", ["adapter"], registry=to)
        self.batches = Histogram("codi_batch_images", "Images generated together", buckets=SIZES, registry=to)
        Gauge("codi_waiting_images", "Images that wait", registry=to).set_function(waiting)
