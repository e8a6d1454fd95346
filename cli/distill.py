"""codi distill: train an adapter for a task on the frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from codi_hub import tasks
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.completion import tasks as tasks_named
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output, cell
from codi_hub.cli.progress import Display
from codi_hub.config.distill import DistillConfig
from codi_hub.config.first_edition import REMOVED, RENAMED
from codi_hub.config.layers import merge, parse_override, preset_names, read_config, read_preset
from codi_hub.errors import UsageError
from codi_hub.paths import display_path
from codi_hub.reports import DistillResult, TrainingPlan
from codi_hub.training.distributed import joined

EPILOG = (
    "From weakest to strongest: defaults, what the task prefers, --preset, --config, -O, flags. Every field, with its "
    "meaning, is in the config.yaml of a run folder and in the reference of the documentation."
)
_NEGATIONS = {  # flags of the first edition that were not named after their field
    "no-gain": ("gain", "false"),
    "consistency": ("consistency", "1"),
    "no-consistency": ("consistency", "0"),
    "gain": ("gain", "true"),
    "consistency-cap": ("consistency_cap", "true"),
    "no-consistency-cap": ("consistency_cap", "false"),
    "mixed-t": ("shared_t", "false"),
    "shared-t": ("shared_t", "true"),
    "read": ("read", "true"),
    "no-read": ("read", "false"),
    "allow-base-mismatch": ("allow_base_mismatch", "true"),
}


class _DistillCommand(TyperCommand):
    """The command, with an answer to the flags of the first edition."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for arg in args[: args.index("--")] if "--" in args else args:
            if arg.startswith("--") and (successor := _successor(arg[2:])):
                raise UsageError(f"{arg.partition('=')[0]}: {successor}")
        return super().parse_args(ctx, args)


def _successor(typed: str) -> str | None:
    """Return what to write instead of a flag that was removed, None for any other text."""
    flag, _, value = typed.partition("=")
    name = flag.replace("-", "_")
    if name.removeprefix("no_") in REMOVED:
        return f"removed with {REMOVED[name.removeprefix('no_')][1]}; adapters trained with it still run"
    if name == "pairs":
        return "use --cache-dir"
    if name in tasks.option_flags():
        return f"use --set {name}={value or 'VALUE'}"
    field, value = _NEGATIONS.get(flag, (name, value or "VALUE"))
    return f"use -O {RENAMED[field]}={value}" if field in RENAMED and RENAMED[field] != "task" else None


def register(app: typer.Typer) -> None:
    app.command("distill", cls=_DistillCommand, epilog=EPILOG)(distill)


@options_from(DistillConfig, with_task_flags=False)
def distill(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="Task to train an adapter for; see `codi task list`", autocompletion=tasks_named
        ),
    ],
    given: dict[str, Any],
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help=f"Bundled configuration: {', '.join(preset_names())}")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file, such as a run's config.yaml")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("-O", metavar="PATH=VALUE", help="Any field, as loss.grid=4; repeat for more"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the memory that it takes, and stop")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil an adapter that does the task in 1-4 steps, and register it as a new version."""
    lowest = {} if preset is None else read_preset(preset)
    layers = [read_config(config)] if config else []
    layers += [parse_override(text) for text in override or []]
    layers.append(given)
    early = DistillConfig(**merge([lowest, *layers]))  # errors in what was typed come before torch is loaded
    if dry_run:
        from codi_hub.hub import Hub

        with Hub.open(base=early.base) as hub:
            _print_plan(Output(json, quiet), hub.plan(task, hub.catalog.distill_config(task, *layers, preset=lowest)))
        return
    with joined(early.training.device) as main:
        from codi_hub.hub import Hub

        out = Output(json, quiet)
        with Hub.open(base=early.base) as hub, Display(out) as display:
            result = hub.distill(task, hub.catalog.distill_config(task, *layers, preset=lowest), on_event=display)
    if main:
        _print(out, result)


def _print_plan(out: Output, plan: TrainingPlan) -> None:
    about = f"{plan.task} on {plan.base}: kind {plan.kind}, {plan.size} px, batch {plan.batch} x {plan.accumulate}"
    parts = [f"{name:10} {size / 1e9:8.2f} GB" for name, size in (plan.memory | {"total": plan.total}).items()]
    out.result(plan.to_json(), "\n".join([f"{about}, learning rate {plan.lr:g}", *parts]), str(plan.total))


def _print(out: Output, result: DistillResult) -> None:
    scores = ", ".join(f"{name} {cell(value)}" for name, value in result.metrics.items() if not isinstance(value, dict))
    lines = [f"Registered {result.adapter} for base {result.base} after {result.steps} steps: {scores or 'no scores'}"]
    if result.resumed_finished:
        lines = [
            f"The run in {display_path(result.run_dir)} has finished: it is {result.adapter}, after {result.steps} "
            "steps; --train-steps or --time-budget with more continues it"
        ]
    elif not result.moved_latest:
        why = f"It scores worse than {result.latest}"
        if not result.comparable:
            why = f"It was not measured on the same held-out pairs as {result.latest}"
        use = f"use it as {result.adapter}, or `codi tag {result.adapter} latest`"
        lines.append(f"{why}, which stays the latest; {use}.")
    out.result(result.to_json() | {"moved_latest": result.moved_latest}, "\n".join(lines), result.adapter)
