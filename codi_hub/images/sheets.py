"""Contact sheets: a grid of images with labels, for visual inspection."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 6
LABEL = 18  # height of a line of text, px
BACKGROUND, FOREGROUND = (250, 250, 250), (30, 30, 30)


def _thumbnail(image: np.ndarray, width: int) -> Image.Image:
    """Resize an image, uint8 or float in [0, 1], HW or HWC, to a width; enlarge by nearest neighbour."""
    pixels = image if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    source = Image.fromarray(pixels).convert("RGB")
    height = max(1, round(source.height * width / source.width))
    enlarging = width >= source.width
    return source.resize((width, height), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    width: int = 256,
) -> Image.Image:
    """Draw a grid of images, one row per subject.

    Args:
        rows: images, uint8 or float in [0, 1], HW or HWC, of any size; None leaves a cell empty.
        columns: headings above the columns, if any.
        labels: a line of text above each row, if any.
        width: of each image, px; a row is as high as its highest image.

    Raises:
        ValueError: no image.
    """
    cells = [[None if image is None else _thumbnail(image, width) for image in row] for row in rows]
    heights = [max((cell.height for cell in row if cell), default=0) for row in cells]
    if not any(heights):
        raise ValueError("a contact sheet needs at least one image")
    across = max(map(len, cells))
    top = GAP + (LABEL if columns else 0)
    line = LABEL if labels else 0
    total = top + sum(height + line + GAP for height in heights)
    canvas = Image.new("RGB", (GAP + across * (width + GAP), total), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for k, text in enumerate(columns):
        draw.text((GAP + k * (width + GAP), GAP // 2), _cut(text, width, font), FOREGROUND, font)
    for k, (row, height) in enumerate(zip(cells, heights, strict=True)):
        if k < len(labels):
            draw.text((GAP, top), _cut(labels[k], canvas.width - 2 * GAP, font), FOREGROUND, font)
        for j, cell in enumerate(row):
            if cell:
                canvas.paste(cell, (GAP + j * (width + GAP), top + line))
        top += line + height + GAP
    return canvas


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Truncate the text to a width in px."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
