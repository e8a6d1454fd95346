"""Depth maps in every format."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.errors import InvalidInput, NotFound
from codi_hub.images.depth_maps import read_map
from codi_hub.tasks.depth import normalise

RAMP = np.linspace(0, 1, 40, dtype=np.float32)[None].repeat(30, 0)  # near on the right


def prepared(path: Path, **options: object) -> np.ndarray:
    task = tasks.load("depth", options)
    return task.prepare(task.load(path), path=path).condition


def written(folder: Path, kind: str) -> Path:
    path = folder / ("map.npy" if kind.startswith("npy") else "map.png")
    arrays = {
        "png8": np.round(RAMP * 255).astype(np.uint8),
        "png16": np.round(RAMP * 65535).astype(np.uint16),
        "png16 low": np.round(1000 + RAMP * 900).astype(np.uint16),
        "png rgb": np.round(RAMP * 255).astype(np.uint8)[..., None].repeat(3, 2),
        "npy float": RAMP * 37 - 4,
        "npy half": RAMP.astype(np.float16),
        "npy int": np.round(RAMP * 1000).astype(np.int32),
        "npy 1HW": RAMP[None],
    }
    if kind.startswith("npy"):
        np.save(path, arrays[kind])
    else:
        Image.fromarray(arrays[kind]).save(path)
    return path


@pytest.mark.parametrize(
    "kind", ["png8", "png16", "png16 low", "png rgb", "npy float", "npy half", "npy int", "npy 1HW"]
)
def test_a_map_gives_the_same_condition_in_any_format(tmp_path: Path, kind: str) -> None:
    condition = prepared(written(tmp_path, kind))
    assert condition.shape == (30, 40, 1)
    assert np.abs(condition[..., 0] - RAMP).max() < 0.03
    assert (condition[:, 0].max(), condition[:, -1].min()) == (0, 1)
    inverted = prepared(written(tmp_path, kind), invert=True)
    assert np.allclose(inverted, 1 - condition)


def test_16_bits_are_not_reduced_to_8(tmp_path: Path) -> None:
    assert len(np.unique(prepared(written(tmp_path, "png16 low")))) > 30


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e9])
def test_constant_maps_are_harmless(value: float) -> None:
    assert np.array_equal(normalise(np.full((4, 5), value, np.float32)), np.full((4, 5), 0.5, np.float32))


def test_outliers_do_not_flatten_the_rest() -> None:
    depth = RAMP.copy()
    depth[0, 0], depth[0, 1] = 1e6, -1e6
    assert np.abs(normalise(depth)[1:] - normalise(RAMP)[1:]).max() < 0.06


def test_a_small_object_on_a_constant_background_is_kept() -> None:
    depth = np.zeros((40, 40), np.float32)
    depth[3:6, 3:6] = 7
    assert np.array_equal(np.unique(normalise(depth)), [0, 1])


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("invert", [False, True])
def test_holes_become_the_far_end(hole: float, invert: bool) -> None:
    depth = RAMP.copy()
    depth[5:9, 5:9] = hole
    unit = normalise(depth, invert=invert)
    assert (unit[5:9, 5:9] == 0).all()
    assert np.abs(unit[20] - normalise(RAMP, invert=invert)[20]).max() < 0.05


def test_a_map_of_holes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no finite value"):
        normalise(np.full((3, 3), np.nan, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npy"),
        (b"\x93NUMPY\x01\x00garbage", "not a readable .npy"),
        (np.array([[{"a": 1}]], dtype=object), "not a readable .npy"),
        (np.array([["a", "b"]]), "not a depth map: save it as numbers"),
        (np.zeros((2, 3, 4, 5)), "is not a depth map"),
        (np.zeros(0), "is not a depth map"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "map.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InvalidInput, match=message) as caught:
        prepared(path)
    assert "\n" not in str(caught.value)


def test_a_header_with_a_wrong_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(4, 4)", b"(9999999, 9999999)")[:128] + bytes(64))
    with pytest.raises(InvalidInput, match="not a readable"):
        prepared(path)


def test_truncated_image_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "png16")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(InvalidInput, match="the image data are broken"):
        prepared(path)


def test_pairs_use_depth_or_the_example_condition() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    task = tasks.load("depth")
    stored = np.round(RAMP * 255).astype(np.uint8)[..., None].repeat(3, 2)
    by_depth = task.make_pair({"image": image, "depth": RAMP, "caption": "a wall"}, np.random.default_rng(0))
    by_condition = task.make_pair({"image": image, "condition": stored, "caption": None}, np.random.default_rng(0))
    assert np.abs(by_depth.condition.astype(int) - by_condition.condition).max() <= 1
    assert (by_depth.prompt, by_condition.prompt) == ("a wall", "")
    with pytest.raises(InvalidInput, match="task depth needs data with 'depth'; this has image"):
        task.make_pair({"image": image}, np.random.default_rng(0))


def test_adherence_of_a_map_without_edges_is_undefined() -> None:
    noise = np.random.default_rng(0).random((30, 40, 3)).astype(np.float32)
    assert tasks.load("depth").adherence(noise, np.full((30, 40, 1), 0.5, np.float32)) is None


@pytest.mark.slow
def test_estimate_gives_the_map_of_a_photograph(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    processing = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    config = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, readout_type="ignore",
    )  # fmt: skip
    transformers.DPTForDepthEstimation(config).save_pretrained(tmp_path)
    processing.DPTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    task = tasks.load("depth", {"estimate": str(tmp_path)})
    photograph = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    condition = task.prepare(photograph).condition
    assert condition.shape == (40, 56, 1)
    assert (condition.min(), condition.max()) == (0, 1)
    pair = task.make_pair({"image": photograph, "caption": "noise"}, np.random.default_rng(0))
    assert np.abs(pair.condition / 255 - condition).max() < 0.01
    assert np.array_equal(task.prepare(RAMP).condition[..., 0], normalise(RAMP))  # an array is a map even so


def test_a_model_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    task = tasks.load("depth", {"estimate": str(tmp_path / "none")})
    with pytest.raises(NotFound, match="no depth model") as caught:
        task.prepare(np.zeros((8, 8, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_maps_of_other_tools_are_read(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(12.0), np.arange(10.0)).astype("<f4")
    (tmp_path / "a.pfm").write_bytes(b"Pf\n10 12\n-1.0\n" + values[::-1].tobytes())
    np.savez(tmp_path / "one.npz", whatever=values)
    np.savez_compressed(tmp_path / "named.npz", depth=values, mask=values > 3)
    for name in ("a.pfm", "one.npz", "named.npz"):
        assert np.array_equal(tasks.load("depth").load(tmp_path / name), values), name


def test_npz_files_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.eye(3), b=np.eye(3))
    np.savez(tmp_path / "objects.npz", depth=np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive, archive.open("depth.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    (tmp_path / "text.npz").write_bytes(b"words")
    messages = {
        "two.npz": "one array, or one named depth; it has a, b$",
        "objects.npz": "save it as numbers",
        "huge.npz": "over the limit of",
        "text.npz": "not a readable .npz file: ",
    }
    for name, message in messages.items():
        with pytest.raises(InvalidInput, match=message):
            read_map(tmp_path / name)
