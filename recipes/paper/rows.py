"""The rows of the paper's tables at this project's scale, and the claims that they test."""

from dataclasses import dataclass, field
from typing import Any, Literal

At = tuple[int, str]
"""How an adapter samples: steps and sampler."""

SIZE = 64  # side of all images in px
PAIRS = 3000  # training pairs, others for each seed
MEASURED = 256  # held-out images, the same for all rows
COMMON: dict[str, Any] = {"size": SIZE, "count": PAIRS, "batch": 16, "lr": 6e-4, "sample_every": 0}
FEW: dict[str, Any] = {"grid": 4}  # the times of 1, 2 and 4 sampling steps, and no others, in a short training
DATA = {
    "superres": "leaves+scenes",
    "inpaint": "leaves+scenes",
    "depth": "scenes",
    "edit": "edits",
}
WORK = ("method", "kind", "guidance", "consistency", "rollout")  # options that a training step's time depends on
# without the postprocessing of `codi run`, which would hide differences between methods
AS_MADE: dict[str, dict[str, Any]] = {
    "superres": {"detail": 1.0, "correct": False, "sharpen": 0.0},
    "edit": {"keep": 0.0},
}


@dataclass(frozen=True)
class Row:
    """One way of training.

    Attributes:
        key: its name in files, together with the task's.
        name: its name in tables.
        told: options of the distillation, in addition to `COMMON`.
        at: the ways its adapter is sampled; none for a teacher.
        share: its share of the table's training time.
        teacher: key of the row it is distilled from.
    """

    task: str
    key: str
    name: str
    told: dict[str, Any] = field(hash=False)
    at: tuple[At, ...] = ((1, "ddim"), (2, "ddim"), (4, "ddim"))
    share: float = 1.0
    teacher: str | None = None

    @property
    def work(self) -> str:
        """Return what the cost of a training step depends on; rows that differ only in numbers share it."""
        told = {name: self.told[name] for name in WORK if name in self.told}
        return ", ".join(f"{name}={value}" for name, value in told.items())


CONDITIONAL: dict[str, Any] = {"method": "conditional"}
FULL: dict[str, Any] = {**CONDITIONAL, "kind": "full"}
PE: dict[str, Any] = {"method": "pe-codi", "kind": "control", **FEW}
CODI: dict[str, Any] = {"method": "codi", **FEW}
FOUR, FIFTY, MANY = (4, "ddim"), (50, "ddim"), (250, "ddim")
ONE_AND_FOUR = ((1, "ddim"), FOUR)


def _ablation(key: str, name: str, **told: Any) -> Row:
    return Row("superres", key, name, {**PE, **told}, ONE_AND_FOUR)


def _light(task: str) -> tuple[Row, ...]:
    """Return PE-CoDi with smaller or faster kinds; the published row is of kind `control`."""
    return tuple(Row(task, kind, f"PE-CoDi, kind {kind}", {**PE, "kind": kind}) for kind in ("static", "lora"))


TABLES: dict[str, tuple[Row, ...]] = {
    "superres": (
        Row("superres", "pe-codi", "PE-CoDi", PE),
        *_light("superres"),
        Row("superres", "codi", "CoDi", CODI),
        Row("superres", "controlnet", "ControlNet", CONDITIONAL, (FOUR, (4, "dpmpp"), FIFTY)),
        Row("superres", "ldm", "LDM", FULL, (FOUR, (4, "dpmpp"), FIFTY, MANY)),
        Row("superres", "ldm-half", "LDM, half of the time", FULL, (), 0.5),
        Row("superres", "cm-ii", "CM-II", {"method": "cm", **FEW}, share=0.5, teacher="ldm-half"),
        Row("superres", "gd-ii", "GD-II", {"method": "gd"}, share=0.5, teacher="ldm-half"),
    ),
    "inpaint": (
        Row("inpaint", "pe-codi", "PE-CoDi", PE),
        *_light("inpaint"),
        Row("inpaint", "controlnet", "ControlNet", CONDITIONAL, (FOUR, FIFTY)),
    ),
    "depth": (
        Row("depth", "pe-codi", "PE-CoDi", PE),
        *_light("depth"),
        Row("depth", "controlnet", "ControlNet", CONDITIONAL, (FOUR, (4, "dpmpp"), FIFTY)),
    ),
    "edit": (
        Row("edit", "pe-codi", "PE-CoDi", PE),
        *_light("edit"),
        Row("edit", "codi", "CoDi", CODI),
        Row("edit", "ldm", "LDM (as InstructPix2Pix)", FULL, (FOUR, FIFTY)),
    ),
    "ablation": (
        _ablation("no-consistency", "without noise consistency", consistency=False),
        _ablation("no-pf-ode", "without the PF-ODE step (z_s from x)", ode="none"),
        _ablation("true-noise", "the true noise in the PF-ODE step", ode="noise"),
        _ablation("mixed-t", "one time per sample", shared_t=False),
        _ablation("random", "random initialisation of the encoder", init="random"),
        _ablation("gate", "fusion by a gate (mu)", fusion="gate"),
        _ablation("no-guidance", "without guidance", guidance="off"),
        _ablation("roundtrip", "guidance by E(D(x_hat))", guidance="roundtrip"),
        _ablation("pixel", "guidance by pixels", guidance="pixel"),
        _ablation("plain-weight", "consistency weight without a cap", consistency_cap=False),
        _ablation("rollout", "half of the steps from sampler states", rollout=0.5),
    ),
}

Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Claim:
    """`left` is at most `limit` times `right` in a figure where less is better; at least, where more is.

    Attributes:
        text: the claim. `goal`: a goal of this project, not a finding of the paper.
        left, right: (key of the row, way of sampling).
        least: value of the right side below which the ratio means nothing.
    """

    text: str
    task: str
    figure: str
    left: tuple[str, At]
    right: tuple[str, At]
    limit: float = 1.0
    goal: bool = False
    least: float = 0.0


def _beats(text: str, task: str, left: tuple[str, At], right: tuple[str, At], *, goal: bool = False) -> list[Claim]:
    """Return claims that the left is better in both distances."""
    return [Claim(text, task, figure, left, right, goal=goal) for figure in ("frechet", "perceptual")]


def _matters(what: str, without: str) -> list[Claim]:
    return _beats(f"{what}, at 4 steps", "superres", ("pe-codi", FOUR), (without, FOUR))


def _loses_little(kind: str, task: str) -> list[Claim]:
    """Return claims that a kind is at most 5 % worse than `control` in either distance."""
    claims = []
    for at, sampled in ((ONE_AND_FOUR[0], "1 step"), (FOUR, "4 steps")):
        text = f"{task}: kind {kind} at most 1.05 times kind control, both at {sampled}"
        for figure in ("frechet", "perceptual"):
            claims.append(Claim(text, task, figure, (kind, at), ("pe-codi", at), 1.05, goal=True))
    return claims


CLAIMS: tuple[Claim, ...] = (
    Claim("CoDi at 4 steps: Frechet at most 1.03 times that of the LDM at 250", "superres", "frechet",
          ("codi", FOUR), ("ldm", MANY), 1.03, goal=True),
    Claim("PE-CoDi at 4 steps: Frechet at most 1.10 times that of the LDM at 250", "superres", "frechet",
          ("pe-codi", FOUR), ("ldm", MANY), 1.10, goal=True),
    Claim("CoDi at 1 step: Frechet at most 1.5 times that of the LDM at 250", "superres", "frechet",
          ("codi", (1, "ddim")), ("ldm", MANY), 1.5, goal=True),
    Claim("PE-CoDi at 1 step: Frechet at most 1.5 times that of the LDM at 250", "superres", "frechet",
          ("pe-codi", (1, "ddim")), ("ldm", MANY), 1.5, goal=True),
    *_beats("PE-CoDi beats ControlNet, both at 4 steps", "superres", ("pe-codi", FOUR), ("controlnet", FOUR)),
    *_beats("PE-CoDi beats CM-II, both at 4 steps", "superres", ("pe-codi", FOUR), ("cm-ii", FOUR)),
    *_beats("PE-CoDi beats GD-II, both at 4 steps", "superres", ("pe-codi", FOUR), ("gd-ii", FOUR), goal=True),
    *_beats("CoDi beats PE-CoDi, both at 4 steps", "superres", ("codi", FOUR), ("pe-codi", FOUR)),
    *_beats("CoDi beats GD-II, both at 4 steps", "superres", ("codi", FOUR), ("gd-ii", FOUR)),
    *_beats("CoDi at 4 steps beats the LDM at 4", "superres", ("codi", FOUR), ("ldm", FOUR)),
    *_matters("Noise consistency helps", "no-consistency"),
    *_matters("The network's own PF-ODE step helps", "no-pf-ode"),
    *_matters("One time for the whole batch is better than one per sample", "mixed-t"),
    *_matters("Pre-trained initialisation of the encoder is better than random", "random"),
    *_matters("Fusion by zero_conv is better than by the gate mu", "gate"),
    *_matters("Guidance helps", "no-guidance"),
    *_matters("Guidance in latents is better than by E(D(x_hat))", "roundtrip"),
    *_matters("Guidance in latents is better than in pixels", "pixel"),
    *_beats("Inpainting: PE-CoDi at 4 steps beats ControlNet at 50", "inpaint", ("pe-codi", FOUR),
            ("controlnet", FIFTY)),
    *_beats("Depth: PE-CoDi beats ControlNet, both at 4 steps", "depth", ("pe-codi", FOUR), ("controlnet", FOUR)),
    Claim("Depth: PE-CoDi keeps to the map better than ControlNet, both at 4 steps", "depth", "adherence",
          ("pe-codi", FOUR), ("controlnet", FOUR)),
    Claim("Editing: CoDi at 1 step obeys at least 0.95 times as often as the LDM at 50", "edit", "followed",
          ("codi", (1, "ddim")), ("ldm", FIFTY), 0.95, goal=True, least=0.25),
    Claim("Editing: PE-CoDi at 1 step obeys at least 0.95 times as often as the LDM at 50", "edit", "followed",
          ("pe-codi", (1, "ddim")), ("ldm", FIFTY), 0.95, goal=True, least=0.25),
    *(claim for kind in ("static", "lora") for task in ("superres", "inpaint") for claim in _loses_little(kind, task)),
)  # fmt: skip
