"""Contact sheets: a grid of pictures with labels, for people to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 6
LABEL = 18  # height of a line of text, px
PAPER, INK = (250, 250, 250), (30, 30, 30)


def _thumbnail(image: np.ndarray, width: int) -> Image.Image:
    """An image, uint8 or float in [0, 1], HW or HWC, at a given width; enlarged so that its pixels show."""
    pixels = image if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    picture = Image.fromarray(pixels).convert("RGB")
    height = max(1, round(picture.height * width / picture.width))
    enlarging = width >= picture.width
    return picture.resize((width, height), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)


def sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    width: int = 256,
) -> Image.Image:
    """A grid of pictures, one row per subject.

    Args:
        rows: pictures, uint8 or float in [0, 1], HW or HWC, of any sizes; None leaves a cell empty.
        columns: headings above the columns, if any.
        labels: a line above each row, if any.
        width: of each picture, px; each row is as high as its highest picture.

    Raises:
        ValueError: no picture at all.
    """
    cells = [[None if image is None else _thumbnail(image, width) for image in row] for row in rows]
    heights = [max((cell.height for cell in row if cell), default=0) for row in cells]
    if not any(heights):
        raise ValueError("a sheet needs at least one picture")
    across = max(map(len, cells))
    top = GAP + (LABEL if columns else 0)
    line = LABEL if labels else 0
    total = top + sum(height + line + GAP for height in heights)
    paper = Image.new("RGB", (GAP + across * (width + GAP), total), PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(12)
    for k, text in enumerate(columns):
        draw.text((GAP + k * (width + GAP), GAP // 2), _cut(text, width, font), INK, font)
    for k, (row, height) in enumerate(zip(cells, heights, strict=True)):
        if k < len(labels):
            draw.text((GAP, top), _cut(labels[k], paper.width - 2 * GAP, font), INK, font)
        for j, cell in enumerate(row):
            if cell:
                paper.paste(cell, (GAP + j * (width + GAP), top + line))
        top += line + height + GAP
    return paper


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of the text as fits into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
