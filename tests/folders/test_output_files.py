"""What output files say and hold beside their pixels."""

import numpy as np
import pytest
from folder_runs import run_items
from PIL import Image
from tifffile import TiffFile

from codi_hub import RunOptions, tasks
from codi_hub.errors import UsageError
from codi_hub.folders.plan import plan
from codi_hub.images.metadata import read_origin
from codi_hub.inference.tiling import finish_output


@pytest.mark.parametrize("metadata", [True, False])
def test_an_output_keeps_its_inputs_metadata_and_says_what_made_it(tmp_path, task, copying, metadata):
    exif = Image.Exif()
    exif[0x8298] = "(c) me"
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / name, exif=exif)
    items = plan([tmp_path / "in"], task, RunOptions(out=tmp_path / "out", prompt="a ball"))
    assert run_items(items, task, copying, metadata=metadata).ok == 2
    for item in items:
        origin = read_origin(item.output)
        assert Image.open(item.output).getexif().get(0x8298) == ("(c) me" if metadata else None)
        assert (origin is not None) == metadata
        if origin is not None:
            expected = {"adapter": "double:1", "steps": 4, "seed": item.seed, "prompt": "a ball", "input": item.name}
            assert expected.items() <= origin.items()


@pytest.mark.parametrize("keeps_grey", [True, False])
def test_grey_in_grey_out(tmp_path, task, copying, keeps_grey):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "in" / "a.png")
    task.keeps_grey = keeps_grey
    items = plan([tmp_path / "in"], task, RunOptions(out=tmp_path / "out"))
    assert run_items(items, task, copying).ok == 1
    image = Image.open(items[0].output)
    assert image.mode == ("L" if keeps_grey else "RGB")
    assert np.array_equal(np.asarray(image.convert("L"))[::2, ::2].ravel(), np.arange(64))


@pytest.mark.parametrize("ext", ["png", "tif"])
@pytest.mark.parametrize("tile", ["off", "128"])
def test_sixteen_bits_are_the_networks_own(tmp_path, task, tile, ext):
    def ramp(conditions, prompts, seeds):
        return [np.linspace(0.2, 0.3, one[..., :1].size).reshape(*one.shape[:2], 1).repeat(3, 2) for one in conditions]

    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 80)).save(tmp_path / "in" / "a.jpg")
    options = RunOptions(out=tmp_path / "out", bits=16, ext="auto" if ext == "png" else ext)
    items = plan([tmp_path / "in"], task, options)
    assert items[0].output.name == f"a.{ext}"
    assert run_items(items, task, ramp, bits=16, tile=tile).ok == 1
    with Image.open(items[0].output) as image:
        assert image.size == (16, 160)
    data = items[0].output.read_bytes()
    if ext == "png":
        assert data[24] == 16
    else:
        with TiffFile(items[0].output) as file:
            assert file.pages[0].bitspersample == 16


def test_sixteen_bits_are_refused_where_a_file_or_a_task_has_none(tmp_path, task):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for options in ({"ext": "jpg"}, {"out": tmp_path / "x.webp"}):
        with pytest.raises(UsageError, match=r"^bits 16: a file of type (jpg|webp) has 8 bits per channel: choose png"):
            plan([tmp_path / "a.png"], task, RunOptions(bits=16, **options))
    task.finishes_values = False
    with pytest.raises(UsageError, match=r"^bits 16: task double finishes its images in 8 bits: leave it out$"):
        plan([tmp_path / "a.png"], task, RunOptions(bits=16))


@pytest.mark.parametrize("name", tasks.builtin())
def test_the_finished_image_of_eight_bits_is_that_of_sixteen_rounded(name):
    task = tasks.load(name, {"texture": 0} if name == "inpaint" else {})
    assert task.finishes_values
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8))
    if name == "inpaint":
        image.putalpha(Image.fromarray(np.pad(np.zeros((8, 8), np.uint8), 4, constant_values=255)))
    prepared = task.prepare(np.asarray(image) if task.reads_alpha else image.convert("RGB"))
    width, height = prepared.size
    output = rng.random((height, width, 3), dtype=np.float32)
    eight, deep = (finish_output(task, output, prepared, bits) for bits in (8, 16))
    assert (eight.dtype, deep.dtype) == (np.uint8, np.uint16)
    assert np.abs(deep / 257 - eight).max() <= 0.51
    assert len(np.unique(deep)) > 256
