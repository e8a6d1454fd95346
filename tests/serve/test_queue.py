"""The queue: turns, shared batches, bounds, failures, and the end."""

import threading
from collections.abc import Callable, Sequence

import pytest
from PIL import Image

from codi_hub.errors import InvalidInput
from codi_hub.serve.queue import Queue, QueueFull, Stopping, Work

SMALL, LARGE = Image.new("RGB", (4, 4)), Image.new("RGB", (8, 8))


def work(ref: str, image: Image.Image = SMALL, **changes: object) -> Work:
    values = {"mask": None, "prompt": "", "seed": 0, "size": None, "steps": 1, "strength": 1.0, "options": {}}
    return Work("nano", ref, image, **(values | changes))  # type: ignore[arg-type]


class Recorder:
    """Generates nothing, and remembers the batches; the first one waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, works: Sequence[Work]) -> list[Image.Image]:
        self.batches.append([one.ref for one in works])
        self.begun.set()
        assert self.go.wait(20)
        return [one.image for one in works]


def held(recorder: Callable[[Sequence[Work]], Sequence[Image.Image]], **arguments: int) -> Queue:
    """A queue whose thread is busy with one work."""
    queue = Queue(recorder, **{"limit": 100, "pixels": 1000, "batch": 4} | arguments)
    queue.start()
    queue.submit([work("first:1")])
    if isinstance(recorder, Recorder):
        assert recorder.begun.wait(20)
    return queue


def test_adapters_take_turns_and_share_batches() -> None:
    recorder = Recorder()
    queue = held(recorder)
    many = [work("a:1") for _ in range(6)]
    other = [work("b:1"), work("b:1")]
    large = [work("c:1", LARGE)]
    queue.submit([*many, *other, *large])
    recorder.go.set()
    for one in (*many, *other, *large):
        assert one.result.result(20) is one.image
    queue.stop()
    assert recorder.batches[1:] == [["a:1", "b:1", "a:1", "b:1"], ["c:1"], ["a:1"] * 4]


@pytest.mark.parametrize("change", [{"steps": 2}, {"size": (8, 8)}, {"image": LARGE}, {"options": {"scale": 2}}])
def test_what_differs_shares_no_batch(change: dict[str, object]) -> None:
    assert work("a:1").group == work("b:1", strength=0.5, seed=4, prompt="a fox").group
    assert work("a:1", **change).group != work("a:1").group  # type: ignore[arg-type]


def test_options_are_those_of_one_task() -> None:
    one, other, version = (work(ref, options={"correct": True}).group for ref in ("a:1", "b:1", "a:2"))
    assert one == version != other


def test_what_does_not_fit_waits_nowhere() -> None:
    recorder = Recorder()
    queue = held(recorder, limit=3)
    queue.submit([work("a:1"), work("a:1")])
    with pytest.raises(QueueFull, match="2 images wait, and 3 may"):
        queue.submit([work("a:1"), work("a:1")])
    assert queue.length == 2
    recorder.go.set()
    queue.stop()


def test_what_waits_does_not_fill_the_memory() -> None:
    recorder = Recorder()
    queue = held(recorder, pixels=150)
    other = Image.new("RGB", (8, 8))
    queue.submit([work("a:1", LARGE), work("a:1", LARGE), work("a:1", other)])  # 64 pixels each, and one twice
    with pytest.raises(QueueFull, match="as many pixels"):
        queue.submit([work("a:1", Image.new("RGB", (5, 5)))])
    recorder.go.set()
    queue.stop()


def test_who_has_gone_is_not_generated_for() -> None:
    recorder = Recorder()
    queue = held(recorder)
    gone, there = work("a:1"), work("a:1")
    queue.submit([gone, there])
    assert gone.result.cancel()
    recorder.go.set()
    there.result.result(20)
    queue.stop()
    assert recorder.batches[1:] == [["a:1"]]


def test_an_image_that_fails_fails_alone() -> None:
    def generate(works: Sequence[Work]) -> list[Image.Image]:
        if any(one.prompt == "bad" for one in works):
            raise InvalidInput("not this one")
        return [one.image for one in works]

    begin = threading.Event()
    queue = Queue(lambda works: generate(works) if begin.wait(20) else [], 10, 1000)
    queue.start()
    works = [work("a:1"), work("a:1", prompt="bad"), work("a:1")]
    queue.submit(works)
    begin.set()
    assert works[0].result.result(20) is works[2].result.result(20) is SMALL
    with pytest.raises(InvalidInput):
        works[1].result.result(20)
    queue.submit([again := work("a:1")])
    assert again.result.result(20) is SMALL  # the thread lives
    queue.stop()


def test_at_the_end_the_batch_is_finished_and_the_rest_refused() -> None:
    recorder = Recorder()
    queue = Queue(recorder, 10, 1000)
    queue.start()
    queue.submit([first := work("a:1")])
    assert recorder.begun.wait(20)
    queue.submit([waiting := work("a:1")])
    stopping = threading.Thread(target=queue.stop)
    stopping.start()
    with pytest.raises(Stopping):
        waiting.result.result(20)
    with pytest.raises(Stopping):
        queue.submit([work("a:1")])
    recorder.go.set()
    assert first.result.result(20) is SMALL
    stopping.join(20)
    assert not stopping.is_alive()
