"""Landscapes that exist nowhere: one for each number, always the same."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float32]

RIDGES = 6


def draw(seed: int, width: int, height: int) -> Image.Image:
    """Draw the landscape number *seed*: a sky with a sun or moon, and mountains one behind the other."""
    rng = np.random.default_rng(seed)
    warm, cool = rng.uniform(-0.12, 0.14), rng.uniform(0.52, 0.78)
    horizon, zenith = _colour(warm, 0.4, 1.0), _colour(cool, 0.7, 0.5)
    image = Image.fromarray(_sky(zenith, horizon, width, height))
    _add_sun(image, rng)
    for number in range(RIDGES):
        nearness = (number + 1) / RIDGES
        colour = horizon * (1 - nearness) + _colour(cool, 0.6, 0.14) * nearness
        _add_ridge(image, rng, nearness, colour)
    return image


def _sky(zenith: Floats, horizon: Floats, width: int, height: int) -> npt.NDArray[np.uint8]:
    down = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, np.newaxis, np.newaxis] ** 1.4
    rows = zenith * (1 - down) + horizon * down
    return np.broadcast_to(rows * 255, (height, width, 3)).astype(np.uint8)


def _add_sun(image: Image.Image, rng: np.random.Generator) -> None:
    width, height = image.size
    x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(0.12, 0.4) * height
    canvas = ImageDraw.Draw(image, "RGBA")
    # Rings that add up to a glow, and the disc itself.
    for size, alpha in [*((size, 12) for size in np.linspace(0.22, 0.07, 10)), (0.055, 235)]:
        radius = size * height
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 246, 220, alpha))


def _add_ridge(image: Image.Image, rng: np.random.Generator, nearness: float, colour: Floats) -> None:
    width, height = image.size
    x = np.linspace(0.0, 1.0, width)
    # Each octave is twice as fine as the one before it, and half as high.
    heights = sum(
        (rng.uniform(0.5, 1.0) / 2**octave) * np.sin(2 * np.pi * (1.5 * 2**octave * x + rng.uniform()))
        for octave in range(8)
    )
    top = height * (0.4 + 0.5 * nearness) - height * 0.09 * heights
    outline = [(0.0, float(height)), *zip(range(width), top.tolist(), strict=True), (float(width), float(height))]
    red, green, blue = (int(255 * part) for part in colour)
    ImageDraw.Draw(image).polygon(outline, fill=(red, green, blue))


def _colour(hue: float, saturation: float, value: float) -> Floats:
    """The colour in red, green and blue from 0 to 1; *hue* is in turns."""
    red_green_blue = np.array([0.0, 2 / 3, 1 / 3])
    wave = np.clip(np.abs(((red_green_blue + hue) % 1.0) * 6 - 3) - 1, 0.0, 1.0)
    colour: Floats = (value * (1 - saturation * (1 - wave))).astype(np.float32)
    return colour
