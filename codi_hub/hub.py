"""The Hub: the library's front door. It composes the catalog, the loaded networks and the operations on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from codi_hub.catalog import Catalog
from codi_hub.config.distill import DistillConfig
from codi_hub.config.options import EvalOptions, ExportOptions, ImportOptions, RunOptions
from codi_hub.config.share import InstallOptions, PullOptions, PushOptions
from codi_hub.config.values import ADAPTER_MEMORY
from codi_hub.events import OnEvent, ignore
from codi_hub.inference.models import Loaded, ModelCache, Placement
from codi_hub.operations.context import Context
from codi_hub.reports import (
    DistillResult,
    EvalReport,
    ExportResult,
    ImportResult,
    InstallResult,
    JobsReport,
    PushResult,
    RunReport,
    TrainingPlan,
)

if TYPE_CHECKING:
    from codi_hub.operations.generate import AnyImage


class Hub:
    """Generates images with adapters, runs them over folders, trains, evaluates and exports them.

    Networks are loaded when they are first needed. A Hub is a context manager that closes its registry.

    Args:
        catalog: tasks, bases and adapter versions.
        base: name of the base; None: the one in use.

    Attributes:
        catalog: lists, shows and registers; needs no torch.
        base: name of the base, or None.
        models: the loaded networks.
    """

    def __init__(self, catalog: Catalog, base: str | None = None) -> None:
        self.catalog, self.base = catalog, base
        self.models = ModelCache(lambda: catalog.registry)
        self._context = Context(catalog, self.models, base)

    @classmethod
    def open(cls, home: Path | str | None = None, base: str | None = None) -> Self:
        """Open a Hub.

        Args:
            home: state folder; default: CODI_HOME, or the user's data folder.
            base: name of the base; default: the one in use.
        """
        return cls(Catalog.open(home, base), base)

    def close(self) -> None:
        """Close the registry."""
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use(self, ref: str, **placement: Any) -> Loaded:
        """Return (base, adapter, row) of an adapter, loaded. `placement`: fields of `Placement`.

        Raises:
            NotFound, InvalidInput, Mismatch: the adapter or its base cannot be used.
        """
        where = Placement(**placement)
        row = self._context.resolve(ref, allow_base_mismatch=where.allow_base_mismatch)
        return self.models.load(row, where)

    def generate(
        self,
        ref: str | Sequence[str | Sequence[str]],
        images: AnyImage | Sequence[AnyImage | Sequence[AnyImage]],
        *,
        masks: AnyImage | Sequence[AnyImage | Sequence[AnyImage | None] | None] | None = None,
        prompts: str | Sequence[str | None] | None = None,
        negative_prompts: str | Sequence[str | None] | None = None,
        seeds: int | Sequence[int | None] | None = None,
        variants: int = 1,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        strength: float | Sequence[float | Sequence[float | None] | None] = 1.0,
        options: Mapping[str, Any] | None = None,
        sampler: str = "ddim",
        temperature: float = 1.0,
        guidance_scale: float = 1.0,
        tile: str = "auto",
        batch: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        adapter_memory: int = ADAPTER_MEMORY,
        allow_base_mismatch: bool = False,
    ) -> Any:
        """Generate one image per input; adapters of several tasks share batches.

        An image may have several conditions, which its adapters take each: `ref=[["depth", "canny"]]`,
        `images=[[depth_map, edges]]`, `strength=[[1.0, 0.5]]`. What they add to the base is summed; the first one's
        task finishes the output.

        Args:
            ref: adapter such as "superres" or "depth:2", for all images, one each, or one for each condition.
            images: PIL images, or arrays: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or another form that the
                task takes, such as a float depth map (H, W). One image, or a sequence.
            masks: for tasks that fill holes, of the image's size, white (255, or True) in the hole.
            prompts: text for all images or one each.
            negative_prompts: with guidance, what each image is led away from; for all or one each.
            seeds: in [0, 2^63), for all images or one each; default: derived from 0 and the image's index.
            variants: images per input; the first has the input's seed, the others seeds derived from it.
            size: (width, height) of the outputs in pixels, for tasks that draw from a map, whose sides are cut to the
                shape; default: the map's.
            steps: sampling steps, 1 to 1000; default: each adapter's.
            strength: scale in [0, 1] of what the adapters add, for all images or one each; 0 is the base.
            options: task options, as with `codi task add`; every task of the call must have them.
            sampler: "ddim", "renoise" or "dpmpp".
            temperature: scale of the noise.
            guidance_scale: scale of classifier-free guidance, from 1 (none); above 1 for adapters that were trained
                without distillation, at twice the computation.
            tile: "auto", "off", or the side of a tile in pixels: large images are generated in overlapping tiles.
            batch: largest batch; default: what fits into the memory.
            device: "auto", "cpu", "cuda" or "mps".
            dtype: "auto", "fp32", "fp16" or "bf16".
            adapter_memory: bytes of adapters that stay loaded for later calls.
            allow_base_mismatch: use adapters of another base of the same architecture, such as this one's origin,
                where this one has none.

        Returns:
            One image for one image, else a list: a PIL image for a PIL image, uint8 (H, W, 3) for an array (with the
            input's alpha channel, if it has one that the task does not use). With `variants` above 1, a list of that
            many images in place of each.

        Raises:
            CodiError: an argument or input that cannot be used; nothing is generated then.
        """
        from codi_hub.operations.generate import GenerateOptions, generate

        chosen = GenerateOptions(
            masks, prompts, negative_prompts, seeds, variants, size, steps, strength, options, sampler, temperature,
            guidance_scale, tile, batch, device, dtype, adapter_memory, allow_base_mismatch,
        )  # fmt: skip
        return generate(self._context, ref, images, chosen)

    def run(
        self,
        ref: str,
        inputs: Sequence[Path | str],
        options: RunOptions | None = None,
        on_event: OnEvent = ignore,
        *,
        engine: Literal["local", "ray"] = "local",
    ) -> RunReport:
        """Run an adapter over files and folders, and write the outputs.

        Args:
            inputs: files and folders; also URLs in object stores, such as `s3://bucket/in`, as may be `options.out`.
            engine: "ray" makes the images by Ray, on the cluster of `options.ray`, or else on one of this process.

        Raises:
            CodiError: the run could not begin. An error of one file is a row of the report.
            Stopped, Interrupted: the run ended early, with the report so far.
        """
        from codi_hub.operations.runs import run

        options = options or RunOptions()
        if engine == "ray" and options.ray is None:
            options = options.replace(ray="local")
        return run(self._context, ref, inputs, options, on_event)

    def run_jobs(self, file: Path, options: RunOptions | None = None, on_event: OnEvent = ignore) -> JobsReport:
        """Run a file of jobs, JSON Lines; jobs of one adapter are computed together, in whatever order they are listed.

        Args:
            options: of all jobs; a line overrides them.

        Raises:
            CodiError: a line that cannot be run, by its number; nothing was computed.
            Stopped, Interrupted: the run ended early, with the report so far.
        """
        from codi_hub.operations.runs import run_jobs

        return run_jobs(self._context, file, options or RunOptions(), on_event)

    def distill(
        self, task: str, config: DistillConfig | Mapping[str, Any] | None = None, on_event: OnEvent = ignore
    ) -> DistillResult:
        """Train an adapter for a task and register it as a new version.

        Args:
            task: the task's name.
            config: the whole configuration; or a part of it as nested mappings, such as `{"training": {"lr": 1e-3}}`,
                which is laid over what the task prefers, as on the command line.
            on_event: receives messages and training steps.

        Raises:
            CodiError: a configuration or data that cannot be used; nothing is registered then.
        """
        from codi_hub.operations.distill import distill

        return distill(self._context, task, config, on_event)

    def plan(self, task: str, config: DistillConfig | Mapping[str, Any] | None = None) -> TrainingPlan:
        """Decide a training as `distill` would, and count the memory that it takes, without training.

        Args:
            task, config: see `distill`.

        Raises:
            CodiError: a configuration that cannot be used.
        """
        from codi_hub.operations.distill import plan

        return plan(self._context, task, config)

    def evaluate(self, ref: str, options: EvalOptions | None = None, on_event: OnEvent = ignore) -> EvalReport:
        """Measure an adapter at several numbers of steps, on held-out images, beside baselines and other adapters.

        Raises:
            CodiError: an adapter, data or feature network that cannot be used.
        """
        from codi_hub.operations.evaluate import evaluate

        return evaluate(self._context, ref, options or EvalOptions(), on_event)

    def import_controlnet(self, path: Path, options: ImportOptions) -> ImportResult:
        """Make a ControlNet that another tool trained a version of a task, of kind control and method conditional.

        Args:
            path: a diffusers folder, or one safetensors file: in diffusers' keys, in original ones, or a Control-LoRA.
            options: its task, a tag, the base.

        Raises:
            NotFound, InvalidInput, Mismatch: it cannot be used on this base or for this task; nothing is registered.
        """
        from codi_hub.operations.import_controlnet import import_controlnet

        return import_controlnet(self._context, path, options)

    def export(self, ref: str, options: ExportOptions, on_event: OnEvent = ignore) -> ExportResult:
        """Write an adapter as another tool reads it.

        Raises:
            Mismatch: the format cannot hold the adapter.
            Conflict: the folder is in use.
        """
        from codi_hub.operations.export import export

        return export(self._context, ref, options, on_event)

    def install(self, path: Path, options: InstallOptions | None = None) -> InstallResult:
        """Register an adapter that someone sends: a folder or zip, as `export` writes it in format codi.

        Raises:
            NotFound, InvalidInput, Mismatch: it is not an adapter on its own, damaged, or for another task or base;
                nothing is registered then.
        """
        from codi_hub.operations.install import install

        return install(self._context, path, options or InstallOptions())

    def pull(self, where: str, options: PullOptions | None = None) -> InstallResult:
        """Register an adapter of the Hugging Face Hub, or below an URL.

        Args:
            where: `owner/name` or `owner/name@revision`; or an URL that fsspec opens, such as `s3://bucket/depth`.

        Raises:
            CodiError: it cannot be had, is not an adapter, damaged, or for another task or base; nothing is registered.
        """
        from codi_hub.operations.share import pull

        return pull(self._context, where, options or PullOptions())

    def push(self, ref: str, where: str, options: PushOptions | None = None, on_event: OnEvent = ignore) -> PushResult:
        """Write an adapter and its card to the Hugging Face Hub, or below an URL: all files or none.

        Args:
            where: `owner/name`, or an URL that fsspec opens.
            on_event: told, before anything is written, of a base whose licence is unknown, gated or non-commercial.

        Raises:
            Conflict: something else is there.
            CodiError: it cannot be written.
        """
        from codi_hub.operations.share import push

        return push(self._context, ref, where, options or PushOptions(), on_event)
