"""Hub.generate: images in memory, several adapters in one call, masks, and the errors of bad arguments."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import SRGB, photograph
from PIL import Image

from codi_hub import CodiError, Hub, RunOptions
from codi_hub.seeds import image_seed

EXACT: dict[str, Any] = {"device": "cpu", "dtype": "fp32"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub.open(tmp_path_factory.mktemp("home")) as opened:
        yield opened


def levels(one: Any, other: Any) -> int:
    """Return the largest difference in 8-bit levels."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.mark.slow
def test_adapters_of_two_tasks_share_a_call(hub: Hub) -> None:
    images = [photograph(16, 16), photograph(64, 64), photograph(12, 16)]
    refs = ["superres", "deblur", "superres"]
    together = hub.generate(refs, images, seeds=[3, 4, 5], steps=2, **EXACT)
    assert [image.size for image in together] == [(64, 64), (64, 64), (48, 64)]
    for k, (ref, image) in enumerate(zip(refs, images, strict=True)):
        alone = hub.generate(ref, image, seeds=3 + k, steps=2, **EXACT)
        assert isinstance(alone, Image.Image)
        assert levels(together[k], alone) <= 1


def test_arrays_in_give_arrays_out(hub: Hub) -> None:
    image = photograph(16, 12)
    as_image, as_array = hub.generate("superres", [image, np.asarray(image)], seeds=7, steps=1, **EXACT)
    assert isinstance(as_image, Image.Image)
    assert (as_array.dtype, as_array.shape) == (np.uint8, (48, 64, 3))
    assert levels(as_image, as_array) == 0


def test_it_is_what_a_folder_run_gives(hub: Hub, tmp_path: Path) -> None:
    photograph(16, 16).save(tmp_path / "a.png")
    options = RunOptions(out=tmp_path / "out", steps=1, **EXACT)
    assert hub.run("superres", [tmp_path / "a.png"], options).batches == [1]
    image = hub.generate("superres", Image.open(tmp_path / "a.png"), seeds=image_seed(0, "a.png"), steps=1, **EXACT)
    assert levels(image, Image.open(tmp_path / "out" / "a.png")) == 0


@pytest.mark.slow
def test_large_images_are_generated_in_tiles(hub: Hub) -> None:
    image = photograph(200, 150)
    tiled, whole = (hub.generate("deblur", image, tile=tile, steps=1, **EXACT) for tile in ("128", "off"))
    assert tiled.size == whole.size == image.size
    assert np.abs(np.asarray(tiled, int) - np.asarray(whole, int)).mean() < 2


@pytest.mark.parametrize("form", ["image", "uint8", "bool", "channel"])
def test_white_of_a_mask_is_the_hole(hub: Hub, form: str) -> None:
    image, white = photograph(64, 64), np.zeros((64, 64), bool)
    white[20:40, 20:40] = True
    pixels = np.where(white, np.uint8(255), np.uint8(0))
    masks = {"image": Image.fromarray(pixels), "uint8": pixels, "bool": white, "channel": pixels[..., None]}
    output = hub.generate("inpaint", image, masks=masks[form], steps=1, **EXACT)
    before, after = np.asarray(image), np.asarray(output)
    assert output.mode == "RGB"
    assert np.array_equal(after[~white], before[~white])
    assert (after[white] != before[white]).any()


def test_a_transparent_part_is_a_hole_where_there_is_no_mask(hub: Hub) -> None:
    holed = photograph(64, 64).convert("RGBA")
    holed.paste((0, 0, 0, 0), (8, 8, 24, 24))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 24, 24))
    by_alpha, by_mask = hub.generate("inpaint", [holed, holed.convert("RGB")], masks=[None, mask], seeds=1, **EXACT)
    assert levels(by_alpha, by_mask) == 0


def test_alpha_and_profile_survive(hub: Hub) -> None:
    image = photograph(16, 16)
    image.putalpha(77)
    image.info["icc_profile"] = SRGB
    output, array = hub.generate("superres", [image, np.asarray(image)], steps=1, **EXACT)
    assert (output.mode, output.info["icc_profile"]) == ("RGBA", SRGB)
    assert set(np.asarray(output)[..., 3].ravel()) == {77}
    assert array.shape == (64, 64, 4)
    assert image.getpixel((0, 0)) is not None  # the caller's image is still open


def test_prompts_and_seeds_belong_to_their_images(hub: Hub) -> None:
    depth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    words = ["a red sphere", "a green box"]
    first, second, again = hub.generate("depth", [depth] * 3, prompts=[*words, words[0]], seeds=[1, 2, 1], **EXACT)
    assert first.shape == (64, 64, 3)
    assert levels(first, again) <= 1
    assert levels(first, second) > 1
    assert levels(second, hub.generate("depth", depth, prompts=words[1], seeds=2, **EXACT)) <= 1


def test_the_default_seed_depends_on_the_index(hub: Hub) -> None:
    image, mask = photograph(64, 64), np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    arguments = {"masks": [mask] * 2, "steps": 1, "options": {"texture": 0}, **EXACT}
    default = hub.generate("inpaint", [image] * 2, **arguments)
    explicit = hub.generate("inpaint", [image] * 2, seeds=[image_seed(0, "0"), image_seed(0, "1")], **arguments)
    assert [levels(*pair) for pair in zip(default, explicit, strict=True)] == [0, 0]
    assert levels(*default) > 0


@pytest.mark.slow
def test_each_image_has_a_strength_of_its_own(hub: Hub) -> None:
    image = photograph(64, 64)
    images = hub.generate("deblur", [image] * 3, seeds=1, strength=[0, 0.5, None], **EXACT)
    alone = [hub.generate("deblur", image, seeds=1, strength=strength, **EXACT) for strength in (0.0, 0.5, 1.0)]
    assert [levels(*pair) <= 1 for pair in zip(images, alone, strict=True)] == [True] * 3
    assert min(levels(images[0], images[1]), levels(images[1], images[2])) > 1


def test_task_options(hub: Hub) -> None:
    assert hub.generate("superres", photograph(16, 16), options={"scale": 2}, steps=1, **EXACT).size == (32, 32)


IMAGE = Image.new("RGB", (16, 16))
WRONG: dict[str, tuple[tuple[Any, Any], dict[str, Any], str]] = {
    "no image": (("superres", []), {}, "images: at least one is needed"),
    "a path": (("superres", ["a.png"]), {}, r"images\[0\]: a str is not an image: give a PIL image or a numpy array"),
    "a form": (("superres", np.zeros((3, 3))), {}, r"images\[0\]: an array of shape \(3, 3\)"),
    "no pixels": (("superres", np.zeros((0, 3, 3), np.uint8)), {}, r"images\[0\]: an array of shape \(0, 3, 3\)"),
    "no adapter": (("nosuch", IMAGE), {}, "task 'nosuch' has no adapter yet"),
    "refs": ((["superres"] * 3, [IMAGE] * 2), {}, "ref: 3 values for 2 images: give one for all, or one each"),
    "seeds": (("superres", [IMAGE] * 2), {"seeds": [1]}, "seeds: 1 value for 2 images: give one for all, or one each"),
    "a seed": (("superres", IMAGE), {"seeds": -1}, r"images\[0\]: seed -1: a number from 0 to 2\^63 - 1"),
    "prompts": (("superres", IMAGE), {"prompts": 3}, "prompts: int 3 cannot be used"),
    "a prompt": (("superres", [IMAGE]), {"prompts": [b"x"]}, r"prompts\[0\]: bytes b'x' cannot be used"),
    "no prompt": (("edit", [IMAGE] * 2), {"prompts": ["x", None]}, r"images\[1\]: task edit needs a prompt"),
    "no mask": (("inpaint", IMAGE), {}, r"images\[0\]: no hole to fill"),
    "a mask": (("superres", IMAGE), {"masks": IMAGE}, r"images\[0\]: masks: task superres takes no mask"),
    "its size": (("inpaint", IMAGE), {"masks": np.ones((4, 8))}, r"images\[0\]: masks: a mask of 8x4 .* of 16x16"),
    "steps": (("superres", IMAGE), {"steps": 0}, "steps 0: a number from 1 to 1000"),
    "sampler": (("superres", IMAGE), {"sampler": "euler"}, "sampler euler: one of ddim, renoise, dpmpp"),
    "strength": (("superres", IMAGE), {"strength": 1.5}, "strength 1.5: a number from 0 to 1"),
    "its form": (("superres", IMAGE), {"strength": {1}}, r"strength: set \{1\} cannot be used"),
    "one of them": (("superres", [IMAGE] * 2), {"strength": [0, 2]}, r"images\[1\]: strength 2: a number from 0 to 1"),
    "batch": (("superres", IMAGE), {"batch": 0}, "batch 0: at least 1"),
    "guidance": (
        ("superres", IMAGE),
        {"guidance_scale": 5.0},
        r"guidance_scale 5: superres:1 was trained with method regression, without guidance: leave it at 1",
    ),
    "less than none": (("superres", IMAGE), {"guidance_scale": 0.5}, "guidance_scale 0.5: at least 1"),
    "a negative prompt": (
        ("superres", IMAGE),
        {"negative_prompts": "blurry"},
        "negative_prompt: it needs guidance: set guidance_scale above 1",
    ),
    "tile": (("superres", IMAGE), {"tile": "12"}, "tile '12': auto, off, or a side of at least 128 pixels"),
    "device": (("superres", IMAGE), {"device": "tpu"}, "device tpu: not on this machine"),
    "option": (("superres", IMAGE), {"options": {"scales": 2}}, "task superres: no option 'scales'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_arguments_are_one_line(hub: Hub, case: str) -> None:
    arguments, options, message = WRONG[case]
    with pytest.raises(CodiError, match=message) as caught:
        hub.generate(*arguments, **options)
    assert "\n" not in str(caught.value)
