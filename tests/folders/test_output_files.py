"""What output files say and hold beside their pixels."""

import numpy as np
import pytest
from folder_runs import run_items
from PIL import Image

from codi_hub import RunOptions
from codi_hub.folders.plan import plan
from codi_hub.images.metadata import read_origin


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
