"""One of several processes that change one registry at once; it prints the state that it expects of its own rows."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from codi_hub.registry import Registry

WEIGHTS = "adapter.safetensors"
FACTS = {"base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
ROUNDS = 25


class Worker:
    """Change the registry at random and keep an account of its own adapters, tags and runs."""

    def __init__(self, registry: Registry, folder: Path, number: int) -> None:
        self.registry, self.folder, self.number = registry, folder, number
        self.random = random.Random(number)
        self.added: list[str] = []
        self.weights: dict[str, str] = {}  # of every ref of its own that is there
        self.tags: dict[str, str] = {}  # task:tag -> ref
        self.runs = 0
        folder.mkdir()

    def add(self) -> None:
        weights = self.random.choice(["everyone's", f"of {self.number}, {len(self.added)}"])
        (self.folder / WEIGHTS).write_text(weights)
        (self.folder / "adapter.json").write_text("{}")
        row, _ = self.registry.adapters.add(self.folder, task="depth", score=self.random.random(), **FACTS)
        self.added.append(row.ref)
        self.weights[row.ref] = weights

    def copy(self) -> None:
        own = [ref for ref, weights in self.weights.items() if weights != "everyone's"]
        if own:
            source = self.random.choice(own)
            copies = {text for ref, text in self.weights.items() if ref.startswith("copy:")}
            row, created = self.registry.adapters.copy(source, "copy")
            assert created == (self.weights[source] not in copies)
            if created:
                self.added.append(row.ref)
            self.weights[row.ref] = self.weights[source]

    def tag(self) -> None:
        if self.weights:
            ref = self.random.choice(list(self.weights))
            self.registry.adapters.tag(ref, f"w{self.number}")
            self.tags[f"{ref.partition(':')[0]}:w{self.number}"] = ref

    def remove(self) -> None:
        if self.weights:
            refs = self.random.sample(list(self.weights), k=min(2, len(self.weights)))
            assert {row.ref for row in self.registry.adapters.remove(refs).rows} == set(refs)
            self.weights = {ref: text for ref, text in self.weights.items() if ref not in refs}
            self.tags = {tag: ref for tag, ref in self.tags.items() if ref not in refs}

    def run(self) -> None:
        run = self.registry.runs.start("depth", "depth:1", {"worker": self.number})
        item = {"output": "o", "input_hash": "h", "status": "ok", "seed": 1, "error": None, "seconds": 0.1}
        for k in range(2):
            self.registry.runs.add_item(run, input=k, **item)
        self.registry.runs.finish(run, "ok")
        self.runs += 1

    def collect(self) -> None:
        self.registry.collect(dry_run=self.random.random() < 0.3)

    def verify(self) -> None:
        assert {problem.kind for problem in self.registry.verify()} <= {"orphan"}

    def look(self) -> None:
        for ref in self.random.sample(list(self.weights), k=min(2, len(self.weights))):
            row = self.registry.adapters.resolve(ref)
            assert self.registry.adapters.file(row, WEIGHTS).read_text() == self.weights[ref]

    def work(self) -> None:
        operations = [
            self.add,
            self.add,
            self.add,
            self.copy,
            self.tag,
            self.remove,
            self.run,
            self.collect,
            self.verify,
        ]
        for _ in range(ROUNDS):
            self.random.choice(operations)()
            self.look()


if __name__ == "__main__":
    home, number = Path(sys.argv[1]), int(sys.argv[3])
    with Registry.open(home, bundled=home / "none") as registry:
        registry.bases.add("nano", "/nano", family="f")
        worker = Worker(registry, Path(sys.argv[2]) / str(number), number)
        worker.work()
    print(json.dumps({name: getattr(worker, name) for name in ("added", "weights", "tags", "runs")}))
