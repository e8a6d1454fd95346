"""Dead leaves: images of occluding shapes with the statistics of natural photographs.

Restoration networks trained on such images alone work on photographs (Achddou et al., "Fully synthetic training for
image restoration tasks", 2023; Baradad et al., "Learning to see by looking at noise", 2021). The properties that
matter are reproduced: power-law sizes (the spectrum falls as 1/f), textures of 1/f noise, grain like fur or grass,
shading inside a shape, soft edges and shadows, a blurred background layer, the low saturation of photographs, and
man-made detail: print and fine regular lines.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from codi_hub import seeds

SUPERSAMPLING = 2  # shapes are drawn without antialiasing at twice the size, then downscaled by averaging
BANK = 512  # side of the stored noise fields, px

# Luma and the two main chroma axes of photographs: orange-blue varies far more than green-magenta.
_TO_RGB = np.array([[1.0, 1.0, 1.0], [1.0, 0.15, -1.0], [0.45, -0.55, 0.45]], np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Return 1/f^a noise, float32 (16, BANK, BANK, 3), unit standard deviation, a in 0.6..1.8, mostly grey."""
    rng = seeds.constant(20231)
    frequency = np.hypot(np.fft.fftfreq(BANK)[:, None], np.fft.rfftfreq(BANK)[None])
    frequency[0, 0] = 1.0
    fields = []
    for exponent in np.linspace(0.6, 1.8, 16):
        spectrum = np.fft.rfft2(rng.standard_normal((3, BANK, BANK))) / frequency**exponent
        spectrum[:, 0, 0] = 0.0
        luma, warm, green = np.fft.irfft2(spectrum, s=(BANK, BANK))
        field = np.stack([luma, 0.2 * warm, 0.1 * green], -1) / luma.std()
        fields.append(field @ _TO_RGB)
    return np.stack(fields).astype(np.float32)


@lru_cache(maxsize=1)
def _print_bank() -> np.ndarray:
    """Return pages of random words, float32 (8, BANK, BANK) in [0, 1], letters 9 to 64 px high."""
    rng = seeds.constant(20232)
    letters = list("aaabcdeeeefghiiijklmnnooopqrrssttuuvwxyzAEHMRST0123456789")
    pages = []
    for height in np.geomspace(9, 64, 8):
        page = Image.new("L", (BANK, BANK))
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(float(height))
        for top in np.arange(0, BANK, 1.25 * height):
            words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(int(200 / height) + 4)]
            draw.text((-rng.uniform(0, 20), top), " ".join(words), fill=255, font=font)
        pages.append(np.asarray(page, np.float32) / 255)
    return np.stack(pages)


def _print(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a mask of print, float32 (height, width) in [0, 1]: letters, or equidistant lines."""
    if rng.random() < 0.5:
        top, left = rng.integers(BANK, size=2)
        rows, columns = (top + np.arange(height)) % BANK, (left + np.arange(width)) % BANK
        return _print_bank()[rng.integers(8)][rows[:, None], columns[None]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
    half = rng.uniform(0.8, max(1.0, 0.25 * period))
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    ink = np.zeros((height, width), np.float32)
    for turn in (0, np.pi / 2)[: rng.integers(1, 3)]:
        across = (np.cos(angle + turn) * y + np.sin(angle + turn) * x) % period
        ink = np.maximum(ink, np.clip(half - np.minimum(across, period - across) + 0.5, 0, 1))
    return ink.astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Cut a piece of the stored noise, float32 (height, width, 3); a third are stretched into grain or stripes."""
    field = _noise_bank()[rng.integers(16)]
    top, left = rng.integers(BANK, size=2)
    rows = (top + np.arange(height)) % BANK
    columns = (left + np.arange(width)) % BANK
    kind = rng.random()
    if kind < 0.24:  # fur, grass, brushed surfaces: noise stretched along a slightly curved direction
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(3, 14)
        y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
        along = (np.cos(angle) * y + np.sin(angle) * x) / stretch
        across = np.cos(angle) * x - np.sin(angle) * y + rng.uniform(0, 8) * np.sin(along * rng.uniform(0.05, 0.4))
        return field[(top + along).astype(np.int32) % BANK, (left + across).astype(np.int32) % BANK]
    if kind < 0.34:  # stripes, straight or distorted by the noise
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 40)
        phase = (np.cos(angle) * np.arange(height)[:, None] + np.sin(angle) * np.arange(width)[None]) * (
            2 * np.pi / period
        )
        wave = np.sin(phase + rng.uniform(0, 2) * field[rows[:, None], columns[None], 0])
        sharpness = rng.uniform(1, 6)
        return np.repeat((np.tanh(sharpness * wave) / np.tanh(sharpness))[..., None], 3, -1).astype(np.float32)
    return field[rows[:, None], columns[None]]


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Sample the corners of a shape around the origin, float (N, 2): ellipse, blob, polygon, bar or curved thread."""
    kind = rng.random()
    turn = rng.uniform(0, 2 * np.pi)
    if kind < 0.35:  # ellipse
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        points = np.stack([np.cos(angle), rng.uniform(0.3, 1.0) * np.sin(angle)], -1)
    elif kind < 0.6:  # blob: a circle with a few random harmonics
        angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        harmonics = np.arange(2, 6)[:, None]
        weight = rng.normal(0, 0.25, (4, 1)) / harmonics * 2
        around = 1 + (weight * np.cos(harmonics * angle + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(0)
        points = np.stack([around * np.cos(angle), around * np.sin(angle)], -1)
    elif kind < 0.8:  # polygon
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = np.stack([np.cos(angle), np.sin(angle)], -1) * rng.uniform(0.6, 1.0, (len(angle), 1))
    elif kind < 0.92:  # bar
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1.4, rng.uniform(0.05, 0.7)]
    else:  # thread: a long arc a few pixels wide
        along = np.linspace(-2.5, 2.5, 16)
        bend, half = rng.normal(0, 0.15), rng.uniform(0.8, 3.0) / max(radius, 1.0)
        upper = np.stack([along, bend * along**2 + half], -1)
        points = np.concatenate([upper, (upper - [0, 2 * half])[::-1]])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return radius * points @ rotation


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """Sample the colours of an image, float32 (count, 3): broad in luma, narrow in chroma around a common cast."""
    luma = np.clip(rng.normal(rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.28), count), 0.02, 0.98)
    vivid = rng.choice(
        [1.0, 2.5, 5.0], (count, 1), p=[0.86, 0.12, 0.02]
    )  # a few saturated objects, such as flags and fruit
    chroma = rng.normal(0, [0.05, 0.03]) + rng.laplace(0, [0.05, 0.035], (count, 2)) * vivid
    return (np.stack([luma, chroma[:, 0], chroma[:, 1]], -1) @ _TO_RGB).astype(np.float32)


def _paint(canvas: np.ndarray, rng: np.random.Generator, outline: np.ndarray, colour: np.ndarray, rough: float) -> None:
    """Draw a shape on the canvas, float32 (H, W, 3), in place: shadow, colour, shading, texture and print."""
    height, width = canvas.shape[:2]
    soft = rng.uniform(1, 10) if rng.random() < 0.2 else 0.0
    shadow = rng.uniform(1, 8) if rng.random() < 0.25 else 0.0
    margin = int(3 * max(soft, shadow))
    left, top = np.maximum(np.floor(outline.min(0)) - margin, 0).astype(int)
    right, bottom = np.minimum(np.ceil(outline.max(0)) + 1 + margin, [width, height]).astype(int)
    if right <= left or bottom <= top:
        return
    stencil = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(stencil).polygon([(x - left, y - top) for x, y in outline.tolist()], fill=255)
    region = canvas[top:bottom, left:right]
    if shadow:
        shift = rng.integers(-margin, margin + 1, 2) // 2
        region *= 1 - rng.uniform(0.2, 0.7) * np.roll(_weights(stencil, shadow), shift, (0, 1))
    h, w = region.shape[:2]
    slope = rng.normal(0, 0.12, 2)
    shade = slope[0] * np.linspace(-1, 1, h, dtype=np.float32)[:, None] + slope[1] * np.linspace(
        -1, 1, w, dtype=np.float32
    )
    fill = np.broadcast_to(colour, (h, w, 3))
    if h * w > 900 and rng.random() < 0.08:
        fill = fill + _print(rng, h, w)[..., None] * (_colours(rng, 1)[0] - colour)
    fill = fill * (1 + shade)[..., None]
    if h * w > 64:
        fill = fill + rough * _texture(rng, h, w)
    if soft:
        region += _weights(stencil, soft) * (fill - region)
    else:
        np.copyto(region, fill.astype(np.float32), where=np.asarray(stencil)[..., None] > 0)


def _weights(stencil: Image.Image, blur: float) -> np.ndarray:
    """Blur a mask: float32 (H, W, 1) in [0, 1]."""
    return np.asarray(stencil.filter(ImageFilter.GaussianBlur(blur)), np.float32)[..., None] / 255


def _blur(canvas: np.ndarray, radius: float) -> np.ndarray:
    """Blur the canvas, by way of 8 bits."""
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a random dead-leaves image.

    Args:
        rng: the only source of randomness; the same state gives the same image.
        size: side of the image, px.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    side = SUPERSAMPLING * size
    count = int(np.exp(rng.uniform(np.log(12), np.log(260))))
    colours = _colours(rng, count + 1)
    roughness = rng.exponential(0.06)
    canvas = colours[-1] + roughness * _texture(rng, side, side)
    # p(r) ~ r^-3 between the bounds, by inverting its distribution function
    smallest, largest = rng.uniform(2, 12), side * rng.uniform(0.3, 0.8)
    radii = (smallest**-2 + rng.random(count) * (largest**-2 - smallest**-2)) ** -0.5
    # a few large shapes, such as the main objects of a photograph
    radii[: count // 8] = rng.uniform(side * 0.08, side * 0.4, count // 8)
    far = int(count * rng.uniform(0.2, 0.6)) if rng.random() < 0.5 else 0
    for k in range(count):
        if k and k == far:
            canvas = _blur(canvas, rng.uniform(1, 8))
        rough = roughness * rng.exponential(1.0)
        _paint(canvas, rng, _outline(rng, radii[k]) + rng.uniform(0, side, 2), colours[k], rough)
    slope = rng.normal(0, 0.12, 2)  # uneven illumination of the whole image
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    canvas = canvas * (1 + slope[0] * ramp[:, None] + slope[1] * ramp[None])[..., None]
    small = canvas.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3))
    if rng.random() < 0.35:
        small = _blur(small, rng.uniform(0.3, 1.2))  # lenses are rarely sharp at pixel level
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)
