"""Other tools as rows of an evaluation: a folder of their outputs, or a command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codi_hub.errors import CodiError, UsageError
from codi_hub.evaluation.tools import Tool, tool

ENLARGE = """
import sys
from PIL import Image
image = Image.open(sys.argv[1]).convert("RGB")
image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC).save(sys.argv[2])
"""
FILL = """
import sys
import numpy as np
from PIL import Image
image, mask = (np.array(Image.open(name)) for name in sys.argv[1:3])
assert image.shape[2] == 4 and ((mask == 255) == (image[..., 3] == 0)).all() and len(np.unique(image[mask == 255])) == 2
image[mask == 255, :3] = 7
Image.fromarray(image[..., :3]).save(sys.argv[3])
"""
SMALL = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def command(folder: Path, code: str, *places: str) -> str:
    file = folder / "its, tool.py"  # a comma, and a space
    file.write_text(code)
    return " ".join([sys.executable, f"'{file}'", *places])


def run(text: str, shape: tuple[int, ...] = (16, 16, 3)) -> Any:
    found = tool(text)
    assert found
    return found.samples({"inputs": [SMALL]}, 3, shape)


def test_names_of_adapters_are_no_tools() -> None:
    assert tool("depth:2@50") is None


def test_a_command_gets_files_and_its_time_is_measured(tmp_path: Path) -> None:
    images, seconds = run("peer=" + command(tmp_path, ENLARGE, "{input}", "{output}"))
    wanted = Image.fromarray(SMALL).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(images[0], np.asarray(wanted))
    assert seconds > 0


def test_a_folder_has_the_outputs_under_the_names_of_the_inputs(tmp_path: Path) -> None:
    Image.fromarray(np.tile(SMALL, (4, 4, 1))).save(tmp_path / "00003.png")
    images, seconds = run(f"peer={tmp_path}")
    assert np.array_equal(images[0], np.tile(SMALL, (4, 4, 1)))
    assert seconds is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such\\nmodel')", "against peer: exit code 1: model"),
        ("", r"against peer: the command has not written \{output\}"),
        ("import sys; open(sys.argv[2], 'w').write('x')", r"against peer: output.png: not a readable image"),
        (ENLARGE.replace("4 *", "2 *"), "against peer: an output has 8x8 px, and 16x16 are needed"),
    ],
)
def test_a_command_that_fails_is_one_line(code: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CodiError, match=message):
        run("peer=" + command(tmp_path, code, "{input}", "{output}"))


def test_a_missing_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodiError, match=r"against peer: .* has no image 00003; `save_images` writes the inputs"):
        run(f"peer={tmp_path}")
    with pytest.raises(UsageError, match="against peer: no-such-program: cannot be started"):
        run("peer=no-such-program {input} {output}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=x", "before = comes a row's name"),
        ("a b=.", "before = comes a row's name"),
        ("references=.", "before = comes a row's name"),
        ("peer=", r"nothing is no folder, and no command with \{input\} and \{output\}"),
        ("peer=tool {input}", r"tool \{input\} is no folder"),
        ("peer=tool '{input} {output}", "No closing quotation"),
    ],
)
def test_what_is_no_tool_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tool(text)


def test_places_within_words_are_filled(tmp_path: Path) -> None:
    found = tool("peer=tool --in={input} {output}")
    assert found == Tool("peer", command=("tool", "--in={input}", "{output}"))


@pytest.mark.slow
def test_the_command_shows_tools_beside_an_adapter(codi: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "in" / "0.png")
    options = ["--data", tmp_path / "in", "--steps", "1", "--json"]
    peer = command(tmp_path, ENLARGE, "{input}", "{output}")
    answer = codi("eval", "superres", *options, "--against", "bicubic,superres:1@2", "--against", f"peer={peer}",
                  "--save-images", tmp_path / "images")  # fmt: skip
    assert answer.code == 0, answer.err
    rows = {row["name"]: row for row in json.loads(answer.out)["rows"]}
    assert list(rows) == ["bicubic", "autoencoder", "peer", "1 step", "2 steps"]
    assert rows["peer"]["psnr"] == rows["bicubic"]["psnr"]
    assert (rows["peer"]["steps"], rows["bicubic"]["seconds"]) == (None, None)
    assert rows["peer"]["seconds"] > 0
    saved = codi("eval", "superres", *options, "--against", f"peer={tmp_path / 'images' / 'peer'}")
    again = {row["name"]: row for row in json.loads(saved.out)["rows"]}["peer"]
    assert again == rows["peer"] | {"seconds": None}
    assert Image.open(tmp_path / "images" / "inputs" / "00002.png").size == (16, 16)

    fill = command(tmp_path, FILL, "{input}", "{mask}", "{output}")
    answer = codi("eval", "inpaint", *options, "--against", f"peer={fill}", "--save-images", tmp_path / "filled")
    assert answer.code == 0, answer.err
    images = tmp_path / "filled"
    output, mask = (np.array(Image.open(images / folder / "00001.png")) for folder in ("peer", "masks"))
    assert (output[mask == 255] == 7).all()
    original = np.array(Image.open(images / "references" / "00001.png"))
    assert np.array_equal(output[mask == 0], original[mask == 0])

    taken = codi("eval", "superres", *options, "--against", f"bicubic={peer}")
    assert (taken.code, "has a row of that name already" in taken.out) == (2, True)
    refused = codi("eval", "depth", "--against", f"peer={peer}")
    assert refused.err == "Error: --against peer: depth is not compared with other tools\n"
