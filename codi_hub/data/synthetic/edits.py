"""Edited twins of scenes: a picture, the same picture edited, and the instruction in words.

What an instruction leaves open (a colour's shade, where the sun stands, where a new thing lies) is drawn at random.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from codi_hub.data.synthetic.raycast import Thing
from codi_hub.data.synthetic.scenes import Scene, Setting, light_of, place, rendered, surface_of, viewed
from codi_hub.data.synthetic.scenes_words import COLOURS, EDITS, KINDS, LIGHTS, TIME_EDITS, article, name_of

KIND_SHARES = {"recolour": 0.38, "remove": 0.22, "time": 0.24, "add": 0.16}
SEEN = 24  # levels of 255 that a pixel must change by to be seen to change
SEEN_SHARE = 0.003  # of the picture, from which on an edit is one
SAMPLES = 3  # of each colour or time of day: an instruction says neither which shade nor where the sun stands


@dataclass(frozen=True)
class Edit:
    """An edit of a scene.

    Attributes:
        before, after: the scene and its edited twin, of one size.
        instruction: what turns the first into the second, such as "paint the box green".
        kind: "recolour", "remove", "time" or "add".
        wanted: the colour, the time of day, or the thing removed or added.
        setting: of `before`.
        thing: the one that is recoloured, removed or added; none for "time".
    """

    before: Scene
    after: Scene
    instruction: str
    kind: str
    wanted: str
    setting: Setting = field(repr=False)
    thing: Thing | None = field(repr=False, default=None)

    @property
    def example(self) -> dict[str, Any]:
        """What a task makes a pair of: `image` and its `caption`, `edited` and the `edit_prompt` between them."""
        before = {"image": self.before.image, "caption": self.before.caption}
        return before | {"edited": self.after.image, "edit_prompt": self.instruction}

    def outcomes(self, size: int) -> Iterator[tuple[str, np.ndarray]]:
        """What instructions of this kind would give: pictures uint8 (size, size, 3), named as `wanted` is.

        For "recolour" every colour in several shades; for "time" every time of day, several of each; nothing for other
        kinds.
        """
        rng = np.random.default_rng(0)
        if self.kind == "recolour" and self.thing is not None:
            for colour in [*COLOURS] * SAMPLES:
                new = _coloured(rng, self.thing, colour)
                yield colour, rendered(_with(self.setting, self.thing, new), size)[0].image
        elif self.kind == "time":
            for clock in [*TIME_EDITS] * SAMPLES:
                yield clock, rendered(_at(rng, self.setting, clock), size)[0].image


def scene_edit(rng: np.random.Generator, size: int, shares: Mapping[str, float] = KIND_SHARES) -> Edit:
    """A scene and what it becomes by an instruction: recolour, remove or add a thing, or another time of day.

    Args:
        rng: the only source of randomness; the same state gives the same edit.
        size: side of both pictures in pixels.
        shares: how often each kind is drawn; their sum is 1. What a scene has no room for becomes a recolouring.
    """
    while True:  # one edit in some twenty can hardly be seen: black made purple at night
        made = _any_edit(rng, size, shares)
        changed = np.abs(made.before.image.astype(np.int16) - made.after.image).max(-1) > SEEN
        if changed.mean() >= SEEN_SHARE:
            return made


def _any_edit(rng: np.random.Generator, size: int, shares: Mapping[str, float]) -> Edit:
    setting, before, visible = viewed(rng, size)
    thing = visible[int(rng.integers(len(visible)))]
    name = name_of(thing.shape, thing.words, [(t.shape, t.words) for t in setting.world.things])
    kind = str(rng.choice(list(shares), p=list(shares.values())))
    if kind == "time" and setting.clock != "lamp":
        clock = str(rng.choice([word for word in TIME_EDITS if word != setting.clock]))
        after = rendered(_at(rng, setting, clock), size)[0]
        return Edit(before, after, str(rng.choice(TIME_EDITS[clock])), kind, clock, setting)
    if kind == "remove":
        kept, after = _removed(setting, thing, visible, size)
        if kept != setting:
            setting, before = kept, rendered(kept, size)[0]
        return Edit(before, after, str(rng.choice(EDITS["remove"])).format(name), kind, name, setting, thing)
    if kind == "add" and (added := _added(rng, setting, thing, size)):
        new, after, count = added
        if count > len(visible):
            words = " ".join([*filter(None, new.words), new.shape])
            return Edit(before, after, EDITS["add"][0].format(article(words)), kind, words, setting, new)
    return _recoloured(rng, setting, before, thing, name, size)


def _recoloured(rng: np.random.Generator, setting: Setting, before: Scene, thing: Thing, name: str, size: int) -> Edit:
    taken = {t.words[1] for t in setting.world.things if t.shape == thing.shape}
    colour = str(rng.choice([word for word in COLOURS if word not in taken]))
    after = rendered(_with(setting, thing, _coloured(rng, thing, colour)), size)[0]
    return Edit(
        before, after, str(rng.choice(EDITS["recolour"])).format(name, colour), "recolour", colour, setting, thing
    )


def _added(rng: np.random.Generator, setting: Setting, near: Thing, size: int) -> tuple[Thing, Scene, int] | None:
    """Another thing at about the distance of `near`, the scene with it and the number of things seen, if it is seen."""
    new = place(rng, list(setting.world.things), setting.world.tan, float(near.at[1]) * 0.8)
    if new is None or (setting.world.wall and new.at[1] + max(new.half) >= setting.world.wall_at):
        return None
    after, seen, _ = rendered(_with(setting, None, new), size)
    return (new, after, len(seen)) if new in seen else None


def _removed(setting: Setting, thing: Thing, visible: Sequence[Thing], size: int) -> tuple[Setting, Scene]:
    """The setting and its scene without the thing. What only then comes to light no one could paint: neither has it."""
    after, seen, _ = rendered(_with(setting, thing, None), size)
    hidden = [other for other in seen if other not in visible]
    if not hidden:
        return setting, after
    for other in hidden:
        setting = _with(setting, other, None)
    return setting, rendered(_with(setting, thing, None), size)[0]


def _with(setting: Setting, old: Thing | None, new: Thing | None) -> Setting:
    """The setting with a thing replaced, removed (`new` None) or added (`old` None)."""
    things = [new if t is old else t for t in setting.world.things] + ([new] if old is None else [])
    return replace(setting, world=replace(setting.world, things=tuple(t for t in things if t is not None)))


def _coloured(rng: np.random.Generator, thing: Thing, colour: str) -> Thing:
    """The thing in another colour; what was wooden becomes plain."""
    size, _, kind = thing.words
    cell = thing.surface.cell / KINDS[kind].cell
    kind = "" if kind == "wooden" else kind
    return replace(thing, surface=surface_of(rng, kind, COLOURS[colour], cell), words=(size, colour, kind))


def _at(rng: np.random.Generator, setting: Setting, clock: str) -> Setting:
    """The setting at another time of day, or in fog."""
    light = light_of(rng, clock)
    return replace(setting, clock=clock, around=LIGHTS[clock].words, world=replace(setting.world, light=light))
