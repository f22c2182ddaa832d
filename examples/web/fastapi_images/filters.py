"""What a look does to a picture: arrays of shape (height, width, 3), float32, red, green and blue from 0 to 1."""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Look: TypeAlias = Literal["plain", "sharp", "dusk", "ink", "oil"]

_WARM, _COOL = np.array([[1.0, 0.82, 0.6], [0.05, 0.08, 0.3]], np.float32)


def sharp(picture: Floats) -> Floats:
    """Add what a blur takes away (an unsharp mask)."""
    detail = picture - _box_mean(picture, radius=2)
    return picture + np.float32(0.8) * detail


def dusk(picture: Floats) -> Floats:
    """Cool shadows, warm lights, dark corners."""
    light = _light(picture)[..., np.newaxis]
    tone = light * _WARM + (1 - light) * _COOL
    toned = np.float32(0.65) * picture + np.float32(0.35) * tone
    height, width, _ = picture.shape
    down, across = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    corners: Floats = (1 - 0.35 * np.clip(down**2 + across**2 - 0.3, 0, None)).astype(np.float32)
    darkened: Floats = toned * corners[..., np.newaxis]
    return darkened


def ink(picture: Floats) -> Floats:
    """Draw the edges, found with Sobel's operator, in black on white."""
    light = np.pad(_light(picture), 1, mode="edge")
    across = light[:, 2:] - light[:, :-2]
    down = light[2:, :] - light[:-2, :]
    across = across[:-2] + 2 * across[1:-1] + across[2:]
    down = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    edges = 1 - np.clip(2.5 * np.hypot(across, down), 0, 1)
    return np.repeat(edges[..., np.newaxis], 3, axis=2)


def oil(picture: Floats, radius: int = 5) -> Floats:
    """Flat strokes that keep edges (Kuwahara, 1976).

    Each point takes the mean of the calmest of the four squares that have it at a corner.
    """
    light = _light(picture)[..., np.newaxis]
    mean = _box_mean(np.concatenate([picture, light, light * light], axis=2), radius)
    variance = mean[..., 4] - mean[..., 3] ** 2
    height, width, _ = picture.shape
    rows, columns = np.arange(height), np.arange(width)
    best, calmest = picture, np.full((height, width), np.inf, np.float32)
    for down in (-radius, radius):
        for across in (-radius, radius):
            centres = np.ix_(np.clip(rows + down, 0, height - 1), np.clip(columns + across, 0, width - 1))
            is_calmer = variance[centres] < calmest
            calmest = np.where(is_calmer, variance[centres], calmest)
            best = np.where(is_calmer[..., np.newaxis], mean[centres][..., :3], best)
    return best


def _light(picture: Floats) -> Floats:
    """How bright each point is, with the weights of ITU-R BT.601."""
    return picture @ np.array([0.299, 0.587, 0.114], np.float32)


def _box_mean(picture: Floats, radius: int) -> Floats:
    """The mean of the square around each point, by differences of running sums."""
    size = 2 * radius + 1
    for axis in (0, 1):
        around = [(0, 0)] * picture.ndim
        around[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(picture, around, mode="edge"), axis=axis, dtype=np.float64)
        high = sums.take(range(size, sums.shape[axis]), axis=axis)
        low = sums.take(range(sums.shape[axis] - size), axis=axis)
        picture = ((high - low) / size).astype(np.float32)
    return picture


FILTERS: Mapping[Look, Callable[[Floats], Floats]] = {
    "plain": lambda picture: picture,
    "sharp": sharp,
    "dusk": dusk,
    "ink": ink,
    "oil": oil,
}
