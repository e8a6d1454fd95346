import numpy as np
import pytest

from codi_hub.evaluation.table import Figure, mean_table
from codi_hub.images.sheets import GAP, contact_sheet

FIGURES = [
    Figure("bicubic", "a", {"psnr": 20.0, "gmsd": 0.10, "seconds": None}),
    Figure("bicubic", "b", {"psnr": 30.0, "gmsd": 0.20, "seconds": None}),
    Figure("4 steps", "a", {"psnr": 22.0, "gmsd": 0.08, "seconds": 0.5}),
    Figure("4 steps", "b", {"psnr": 31.0, "gmsd": 0.18, "seconds": 1.5}),
]


def test_means_and_differences_from_the_baseline() -> None:
    table = mean_table(FIGURES, against="bicubic")
    assert table.columns == ["psnr", "psnr_delta", "gmsd", "gmsd_delta", "seconds"]
    assert [row["name"] for row in table.rows] == ["bicubic", "4 steps"]
    row = table.row("4 steps")
    assert row["psnr"] == pytest.approx(26.5)
    assert row["psnr_delta"] == pytest.approx(1.5)
    assert row["gmsd_delta"] == pytest.approx(-0.02)
    assert row["seconds"] == pytest.approx(1.0)
    assert table.row("bicubic")["seconds"] is None


def test_a_figure_missing_on_one_image_has_no_mean() -> None:
    partly = [*FIGURES[:3], Figure("4 steps", "b", {"psnr": None, "gmsd": 0.18, "seconds": 1.5})]
    row = mean_table(partly, against="bicubic").row("4 steps")
    assert row["psnr"] is None
    assert row["psnr_delta"] is None
    assert row["gmsd"] == pytest.approx(0.13)


def test_a_table_without_its_baseline_is_refused() -> None:
    with pytest.raises(KeyError, match="nearest"):
        mean_table(FIGURES, against="nearest")


def test_the_text_of_a_table() -> None:
    assert mean_table(FIGURES, against="bicubic").as_text().splitlines() == [
        "         PSNR dB  ± PSNR    GMSD   ± GMSD  s/image",
        "bicubic    25.00   +0.00  0.1500  +0.0000        -",
        "4 steps    26.50   +1.50  0.1300  -0.0200    1.000",
    ]


def test_a_contact_sheet_holds_its_images_in_place() -> None:
    red = np.zeros((8, 16, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((40, 40, 1), 0.5, np.float32)
    paper = np.asarray(
        contact_sheet([[red, grey], [None, red]], columns=["in", "out"], labels=["one", "two"], width=32)
    )
    assert paper.shape[1] == 6 + 2 * 38
    assert paper[6 + 18 + 18 + 8, 6 + 16].tolist() == [255, 0, 0]
    assert paper[6 + 18 + 18 + 16, 6 + 38 + 16].tolist() == [128, 128, 128]
    second = 6 + 18 + 18 + 32 + 6 + 18
    assert paper[second + 8, 6 + 16].tolist() == [250, 250, 250]
    assert paper[second + 8, 6 + 38 + 16].tolist() == [255, 0, 0]
    assert (paper[:24, :40] < 100).any()  # the heading is drawn


def test_long_labels_are_truncated_to_the_sheet() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    short = contact_sheet([[image]], labels=["x" * 400], width=64)
    assert short.width == 64 + 12
    assert (np.asarray(short)[:, -5:] > 200).all()


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([[None]])


def test_a_condition_of_four_channels_is_shown_by_its_first_three() -> None:
    condition = np.zeros((10, 10, 4), np.uint8)
    condition[..., 0] = 200
    condition[:5, :, :3] = 128
    condition[:5, :, 3] = 255
    for image in (condition, condition.astype(np.float32) / 255):
        pixels = np.asarray(contact_sheet([[image]], width=10))
        assert (pixels[GAP : GAP + 5, GAP : GAP + 10] == 128).all()
        assert (pixels[GAP + 5 : GAP + 10, GAP : GAP + 10] == (200, 0, 0)).all()
