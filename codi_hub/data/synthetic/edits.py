"""Edits of scenes: an image before and after an edit, and the instruction in words.

What an instruction leaves open (the shade of a colour, the position of the sun or of a new solid) is random.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from codi_hub import seeds
from codi_hub.data.synthetic.raycast import Solid
from codi_hub.data.synthetic.scenes import Scene, Setting, light_of, place, rendered, surface_of, viewed
from codi_hub.data.synthetic.scenes_words import COLOURS, EDITS, KINDS, LIGHTS, TIME_EDITS, article, name_of

KIND_SHARES = {"recolour": 0.38, "remove": 0.22, "time": 0.24, "add": 0.16}
VISIBLE_CHANGE = 24  # levels of 255 by which a pixel must change to count as changed
LEAST_SHARE = 0.003  # minimum share of changed pixels of an edit
SAMPLES = 3  # of each colour or time of day, since an instruction determines neither the shade nor the sun's position


@dataclass(frozen=True)
class Edit:
    """An edit of a scene.

    Attributes:
        before, after: the scene before and after the edit, of one size.
        instruction: text that asks for the edit, such as "paint the box green".
        kind: "recolour", "remove", "time" or "add".
        wanted: the colour, the time of day, or the solid removed or added.
        setting: of `before`.
        solid: the one recoloured, removed or added; None for "time".
    """

    before: Scene
    after: Scene
    instruction: str
    kind: str
    wanted: str
    setting: Setting = field(repr=False)
    solid: Solid | None = field(repr=False, default=None)

    @property
    def example(self) -> dict[str, Any]:
        """Return the example of a data source: `image`, `caption`, `edited`, `edit_prompt`."""
        before = {"image": self.before.image, "caption": self.before.caption}
        return before | {"edited": self.after.image, "edit_prompt": self.instruction}

    def outcomes(self, size: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, image uint8 (size, size, 3)) of all possible outcomes of this kind of edit, named like `wanted`.

        "recolour": every colour in several shades. "time": several samples of every time of day. Other kinds: none.
        """
        rng = seeds.constant(0)
        if self.kind == "recolour" and self.solid is not None:
            for colour in [*COLOURS] * SAMPLES:
                new = recolour_solid(rng, self.solid, colour)
                yield colour, rendered(replace_solid(self.setting, self.solid, new), size)[0].image
        elif self.kind == "time":
            for clock in [*TIME_EDITS] * SAMPLES:
                yield clock, rendered(_at(rng, self.setting, clock), size)[0].image


def scene_edit(rng: np.random.Generator, size: int, shares: Mapping[str, float] = KIND_SHARES) -> Edit:
    """Sample a scene and an edit of it: recolour, remove or add a solid, or change the time of day.

    Args:
        rng: the only source of randomness; the same state gives the same edit.
        size: side of both images, px.
        shares: probability of each kind, of sum 1. A kind that is impossible in a scene is replaced by a recolouring.
    """
    while True:  # about one edit in 20 is nearly invisible, such as black to purple at night
        edit = _any_edit(rng, size, shares)
        changed = np.abs(edit.before.image.astype(np.int16) - edit.after.image).max(-1) > VISIBLE_CHANGE
        if changed.mean() >= LEAST_SHARE:
            return edit


def _any_edit(rng: np.random.Generator, size: int, shares: Mapping[str, float]) -> Edit:
    """Sample a scene and an edit, which may be invisible."""
    setting, before, visible = viewed(rng, size)
    solid = visible[int(rng.integers(len(visible)))]
    name = name_of(solid.shape, solid.words, [(t.shape, t.words) for t in setting.world.solids])
    kind = str(rng.choice(list(shares), p=list(shares.values())))
    if kind == "time" and setting.clock != "lamp":
        clock = str(rng.choice([word for word in TIME_EDITS if word != setting.clock]))
        after = rendered(_at(rng, setting, clock), size)[0]
        return Edit(before, after, str(rng.choice(TIME_EDITS[clock])), kind, clock, setting)
    if kind == "remove":
        reduced, after = remove_solid(setting, solid, visible, size)
        if reduced != setting:
            setting, before = reduced, rendered(reduced, size)[0]
        return Edit(before, after, str(rng.choice(EDITS["remove"])).format(name), kind, name, setting, solid)
    if kind == "add" and (added := _added(rng, setting, solid, size)):
        new, after, count = added
        if count > len(visible):
            words = " ".join([*filter(None, new.words), new.shape])
            return Edit(before, after, EDITS["add"][0].format(article(words)), kind, words, setting, new)
    return _recoloured(rng, setting, before, solid, name, size)


def _recoloured(rng: np.random.Generator, setting: Setting, before: Scene, solid: Solid, name: str, size: int) -> Edit:
    """Give a solid a colour that no other of its shape has."""
    taken = {t.words[1] for t in setting.world.solids if t.shape == solid.shape}
    colour = str(rng.choice([word for word in COLOURS if word not in taken]))
    after = rendered(replace_solid(setting, solid, recolour_solid(rng, solid, colour)), size)[0]
    return Edit(
        before, after, str(rng.choice(EDITS["recolour"])).format(name, colour), "recolour", colour, setting, solid
    )


def _added(rng: np.random.Generator, setting: Setting, near: Solid, size: int) -> tuple[Solid, Scene, int] | None:
    """Add a solid at about the distance of `near`; return it, the scene and the number of solids if visible."""
    new = place(rng, list(setting.world.solids), setting.world.tan, float(near.at[1]) * 0.8)
    if new is None or (setting.world.wall and new.at[1] + max(new.half) >= setting.world.wall_at):
        return None
    after, visible, _ = rendered(replace_solid(setting, None, new), size)
    return (new, after, len(visible)) if new in visible else None


def remove_solid(setting: Setting, solid: Solid, visible: Sequence[Solid], size: int) -> tuple[Setting, Scene]:
    """Return a setting and its scene without a solid. Solids that it occluded are removed from both."""
    after, revealed, _ = rendered(replace_solid(setting, solid, None), size)
    hidden = [other for other in revealed if other not in visible]
    if not hidden:
        return setting, after
    for other in hidden:
        setting = replace_solid(setting, other, None)
    return setting, rendered(replace_solid(setting, solid, None), size)[0]


def replace_solid(setting: Setting, old: Solid | None, new: Solid | None) -> Setting:
    """Return the setting with a solid replaced, removed (`new` None) or added (`old` None)."""
    solids = [new if t is old else t for t in setting.world.solids] + ([new] if old is None else [])
    return replace(setting, world=replace(setting.world, solids=tuple(t for t in solids if t is not None)))


def recolour_solid(rng: np.random.Generator, solid: Solid, colour: str) -> Solid:
    """Return the solid in another colour; a wooden one becomes plain."""
    size, _, kind = solid.words
    cell = solid.surface.cell / KINDS[kind].cell
    kind = "" if kind == "wooden" else kind
    return replace(solid, surface=surface_of(rng, kind, COLOURS[colour], cell), words=(size, colour, kind))


def _at(rng: np.random.Generator, setting: Setting, clock: str) -> Setting:
    """Return the setting at another time of day, or in fog."""
    light = light_of(rng, clock)
    return replace(setting, clock=clock, around=LIGHTS[clock].words, world=replace(setting.world, light=light))
