from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub.data.photographs import BUNDLED, photographs
from codi_hub.errors import InvalidInput, NotFound, UsageError


def write(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    Image.fromarray(np.repeat(np.repeat(ramp[None, :, None], height, 0), 3, 2)).save(path)


def test_the_photographs_of_scikit_image() -> None:
    photos = photographs()
    assert [photo.name for photo in photos] == list(BUNDLED)
    for photo in photos:
        assert photo.image.dtype == np.uint8
        assert photo.image.shape[2] == 3
        assert max(photo.image.shape) <= 512
        assert all(side % 64 == 0 for side in photo.image.shape[:2])
    depth = photos[-1].depth
    assert depth is not None
    assert depth.shape == photos[-1].image.shape[:2]
    assert (depth.min(), depth.max()) == (0, 1)
    assert depth[-40:].mean() > depth[:40].mean() + 0.2  # the floor before the motorcycle is nearer than the wall
    assert [photo.name for photo in photographs(count=2)] == list(BUNDLED[:2])


def test_a_folder_is_read_in_order_and_cropped(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 200, 130)
    write(tmp_path / "a" / "wide.png", 1200, 400)
    (tmp_path / "notes.txt").write_text("not an image")
    write(tmp_path / ".hidden.png", 200, 200)
    photos = photographs(tmp_path)
    assert [(photo.name, photo.image.shape) for photo in photos] == [
        ("a/wide.png", (128, 512, 3)),
        ("b.png", (128, 192, 3)),
    ]
    assert photos[1].depth is None
    assert len(photographs(tmp_path, count=1)) == 1


def test_the_centre_is_cropped(tmp_path: Path) -> None:
    write(tmp_path / "ramp.png", 128 + 20, 64)
    (photo,) = photographs(tmp_path / "ramp.png")
    ramp = np.linspace(0, 255, 148, dtype=np.uint8)
    assert photo.image[0, :, 0].tolist() == ramp[10:138].tolist()


def test_unusable_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        photographs(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no images; give a folder"):
        photographs(tmp_path)
    write(tmp_path / "tiny.png", 60, 90)
    with pytest.raises(InvalidInput, match=r"tiny\.png: 60x90 pixels: at least 64 px a side"):
        photographs(tmp_path)
    (tmp_path / "tiny.png").write_bytes(b"not an image")
    with pytest.raises(InvalidInput, match=r"tiny\.png: not a readable image"):
        photographs(tmp_path)
