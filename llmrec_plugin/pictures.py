"""A picture's file -> pixels, as a network reads them."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from llmrec_plugin.errors import InputError, MissingExtraError

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
"""A file may claim more pixels than fit into memory; this is as much as the best cameras take."""
_FORMATS = ("PNG", "JPEG")


def pixels(data: bytes, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """The middle of the picture, (3, size, size) float32: channels red, green, blue, standardized.

    The middle square is scaled to `size` pixels, bicubic with antialiasing. Transparent parts are white, and a camera's
    rotation mark is followed.

    Args:
        data: A PNG or JPEG file.
        size: Height and width.
        mean: Subtracted from each channel, whose values are in [0, 1].
        std: What each channel is divided by afterwards.

    Raises:
        InputError: The file is damaged, of another format, or too large.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise MissingExtraError("pillow", "images", "Reading pictures") from exc
    if len(data) > MAX_BYTES:
        raise InputError(f"expected a picture of at most {MAX_BYTES >> 20} MiB, got {len(data) / 2**20:.1f} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata, which does not matter here
            with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise InputError(
                        f"expected a picture of at most {MAX_PIXELS:,} pixels, got {opened.width} x {opened.height}"
                    )
                opened.load()
                picture = _opaque(Image, ImageOps.exif_transpose(opened))
    except InputError:
        raise
    except Exception as exc:  # Pillow's decoders raise anything, from OSError to struct.error
        raise InputError(f"expected a PNG or JPEG file, got {len(data)} bytes that are none: {exc}") from exc
    # Cut first: scaled as a whole, a picture of 60,000,000 x 1 pixels would fill the memory.
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    square = (left, top, left + side, top + side)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=square)
    values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    standardized = (values - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)
    return np.ascontiguousarray(standardized.transpose(2, 0, 1))


def _opaque(image: Any, picture: Any) -> Any:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = image.alpha_composite(ground, picture)
    return picture.convert("RGB")
