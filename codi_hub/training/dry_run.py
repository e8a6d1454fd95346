"""A distillation that is decided and counted, and not trained."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from codi_hub.backbones import locate
from codi_hub.inference.devices import choose_device, choose_dtype
from codi_hub.training.job import Job, Plan, plan
from codi_hub.training.memory import Estimate, adapter_without_data, estimate, trainer_without_data, without_data
from codi_hub.training.run import PRECISIONS, pairs_spec
from codi_hub.training.sizes import sized


def dry_run(job: Job) -> tuple[Plan, int, Estimate]:
    """Return the plan of a job, the side of its images in pixels, and the memory that it takes.

    Of the base's network the shapes are known alone; the device is only asked what it computes in.

    Raises:
        CodiError: a configuration that is not possible, or a base that cannot be loaded.
    """
    work = plan(job)
    training, cpu = work.config.training, torch.device("cpu")
    dtype = choose_dtype(training.precision, choose_device(training.device))
    base = locate(job.base).load_outline(dtype)
    work = sized(work, base)
    size = pairs_spec(work, base).size
    prompt = base.embed([""])
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    without_data(base, mode)
    base.embed_texts = lambda texts: prompt.rows([0] * len(texts))  # type: ignore[method-assign]
    settings = {name: getattr(work.adapter, name) for name in type(work.adapter).model_fields}
    adapter = adapter_without_data(work.kind, base, mode, settings)
    pairs = work.task.condition_channels, size
    method = work.method(work.loss, cpu)
    trainer = trainer_without_data(base, adapter, method, work.config.training, pairs, PRECISIONS[dtype])
    return work, size, estimate(trainer, size, quantize=job.base.quantize)
