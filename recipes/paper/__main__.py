"""The paper's tables on the bundled base: `python -m recipes.paper [TABLE ...]`. Goes on where it was interrupted.

Several can run side by side, each with tables or seeds of its own.
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path

import torch

from codi_hub.base import FrozenBase
from codi_hub.engine import choose_device, choose_dtype
from codi_hub.evaluate.features import load_features
from codi_hub.hub import Hub
from recipes.paper import report
from recipes.paper.results import Results
from recipes.paper.rows import TABLES
from recipes.paper.train import Bench, costs


def say(text: str) -> None:
    """A line at once."""
    print(text, flush=True)


def about(base: FrozenBase, features: str) -> dict[str, str]:
    """What the figures depend on beside the rows."""
    where = torch.cuda.get_device_name() if base.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    machine = f"{where}, {platform.processor() or platform.machine()}, {str(base.dtype).removeprefix('torch.')}"
    sketch = hashlib.sha256(json.dumps(base.fingerprint.sketch, sort_keys=True).encode()).hexdigest()[:12]
    mark = f"nano, fingerprint {base.fingerprint.family} {sketch}"
    return {"base": mark, "feature network": features, "machine": machine}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.paper", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--steps", type=int, default=600, help="of PE-CoDi, whose time all get (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--workspace", type=Path, default=Path("build/paper"))
    parser.add_argument("--results", type=Path, default=Path("docs/results/paper.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/RESULTS.md"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only-report", action="store_true", help="write the page from what was measured")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    results = Results.read(arguments.results)
    if not arguments.only_report:
        fill(results, arguments.tables or list(TABLES), arguments)
    report.write(results, arguments.steps, arguments.page)
    say(f"Wrote {arguments.page}")


def fill(results: Results, tables: list[str], arguments: argparse.Namespace) -> None:
    """Trains and measures what is missing: all rows with the first seed, then all with the next."""
    features = load_features(None, choose_device(arguments.device))
    if features is None:
        raise SystemExit("The feature network is not bundled: python -m recipes.nano features bundle")
    bench = Bench(arguments.workspace, results, features, arguments.steps, say, arguments.device)
    base = bundled_base(bench.hub, arguments.device)
    now = about(base, features.name)
    before = results.about or now
    if any(before[name] != now[name] for name in ("base", "feature network")):
        say(f"Measured before with {before}, now {now}: all of it is done again")
        results.clear()
        before = now
    results.put("about", before)
    everything = [row for rows in TABLES.values() for row in rows]
    if set(results.costs) != {f"{row.task}/{row.key}" for row in everything}:
        say("Timing the rows' training steps side by side")
        results.put("costs", costs(base, everything, arguments.workspace))
    for task in dict.fromkeys(row.task for table in tables for row in TABLES[table]):
        if task not in results.references:
            held_out = bench.held_out(task)
            made = held_out.references(base)
            figures = {name: held_out.figures(images, features) for name, images in made.items()}
            results.put("references", {task: figures})
    for seed in arguments.seeds:
        for table in tables:
            for row in TABLES[table]:
                bench.do(row, seed)


def bundled_base(hub: Hub, device: str) -> FrozenBase:
    """The workspace's base, in the precision that `codi distill` chooses."""
    where = choose_device(device)
    return FrozenBase.load(hub.registry.base(None).source, device=where, dtype=choose_dtype("auto", where))


if __name__ == "__main__":
    main()
