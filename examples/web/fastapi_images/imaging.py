"""What the workers run: plain functions of plain values, which know nothing of servers."""

import base64
import io
from typing import TypedDict

import numpy as np
from drawing import draw
from filters import FILTERS, Look
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000
"""A picture with more is refused before it is unpacked: a small file can claim to be a huge one."""


class BadImageError(ValueError):
    """What was sent is no picture, or too big a one."""


def develop(data: bytes, look: Look, width: int) -> bytes:
    """Make a JPEG of any picture, *width* points wide at most, with a look.

    Raises:
        BadImageError: *data* is no picture that can be read.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise BadImageError(f"the picture has {picture.width} x {picture.height} points, too many")
        return _finish(ImageOps.exif_transpose(picture).convert("RGB"), look, width)
    except UnidentifiedImageError:
        raise BadImageError("this is no picture that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(f"the picture is damaged: {error}") from error


def landscape(seed: int, look: Look, width: int) -> bytes:
    """Draw a landscape and give it a look. A JPEG, *width* points wide."""
    return _finish(draw(seed, width=2 * width, height=4 * width // 3), look, width)


class Card(TypedDict):
    """A picture with its number, ready for JSON."""

    seed: int
    jpeg: str  # Base64


def card(seed: int, look: Look, width: int) -> Card:
    return {"seed": seed, "jpeg": base64.b64encode(landscape(seed, look, width)).decode()}


def get_ready() -> None:
    """What a worker does before its first call, beside importing this module: load Pillow's formats."""
    Image.init()


def _finish(picture: Image.Image, look: Look, width: int) -> bytes:
    picture.thumbnail((width, picture.height), Image.Resampling.LANCZOS)
    points = np.asarray(picture, np.float32) / np.float32(255)
    filtered = np.clip(FILTERS[look](points) * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(filtered).save(file, "JPEG", quality=88)
    return file.getvalue()
