"""Reproduce the paper's tables on the bundled base: `python -m recipes.paper [TABLE ...]`. Resumes when interrupted.

Several processes can run at a time, each with its own tables or seeds.
"""

import argparse
import hashlib
import json
from pathlib import Path

from codi_hub.backbones.unet import UNetBackbone
from codi_hub.evaluation.features import load_features
from codi_hub.inference.devices import choose_device
from codi_hub.inference.models import Placement
from recipes.paper import report
from recipes.paper.results import Results
from recipes.paper.rows import TABLES
from recipes.paper.train import Bench, all_costs


def say(text: str) -> None:
    """Print a line without buffering."""
    print(text, flush=True)


def about(base: UNetBackbone, features: str) -> dict[str, str]:
    """Return what all figures depend on: the hash of the base's weights and vocabulary, and the feature network."""
    digest = hashlib.sha256(json.dumps(base.tokenizers[0].get_vocab(), sort_keys=True).encode())
    for value in base.state_dict().values():
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return {"base": f"nano, sha256 {digest.hexdigest()[:12]}", "feature network": features}


def main() -> None:
    """Fill the results and write the page."""
    parser = argparse.ArgumentParser(prog="python -m recipes.paper", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--steps", type=int, help="of PE-CoDi; all rows get their time (default: the results', or 400)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--workspace", type=Path, default=Path("build/paper"))
    parser.add_argument("--results", type=Path, default=Path("docs/results/paper.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only-report", action="store_true", help="write the page from the results")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; the tables are {', '.join(TABLES)}")
    results = Results.read(arguments.results)
    steps = arguments.steps or results.about.get("steps", 400)
    if results.about.get("steps", steps) != steps:
        parser.error(f"{arguments.results} has rows of --steps {results.about['steps']}: name another file for {steps}")
    if not arguments.only_report:
        fill(results, arguments.tables or list(TABLES), steps, arguments)
    report.write(results, arguments.page)
    say(f"Wrote {arguments.page}")


def fill(results: Results, tables: list[str], steps: int, arguments: argparse.Namespace) -> None:
    """Train and evaluate what is missing: all rows with the first seed, then all with the next."""
    features = load_features(None, choose_device(arguments.device))
    if features is None:
        raise SystemExit("The feature network is not bundled: python -m recipes.nano features bundle")
    bench = Bench(arguments.workspace, results, features, say, arguments.device)
    registry = bench.hub.catalog.registry
    base = bench.hub.models.base(registry.bases.get().name, Placement(device=arguments.device))
    now = {**about(base, features.name), "steps": steps}
    if results.about and results.about != now:
        say(f"The results are of {results.about}, not {now}: all rows are trained again")
        results.clear()
    results.put("about", now)
    say("Timing training steps, where that is missing")
    all_costs(base, results, arguments.workspace)
    for task in dict.fromkeys(row.task for table in tables for row in TABLES[table]):
        bench.refer(task, base)
    for seed in arguments.seeds:
        for table in tables:
            for row in TABLES[table]:
                bench.do(row, seed)


if __name__ == "__main__":
    main()
