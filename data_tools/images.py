"""Encoding and decoding of single images; JPEG and PNG only, whatever a file calls itself."""

import io
import warnings

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG")
GRAY_MODES = ("1", "L")


class ImageError(ValueError):
    """Bytes that are not a readable JPEG or PNG image; the message says why, the caller says where."""


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels, (H, W) gray or (H, W, 3) RGB, without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode to a loaded gray (``channels`` 1) or RGB (3) image.

    Raises:
        ImageError: empty, truncated, corrupt, or of another format.
    """
    mode = "L" if channels == 1 else "RGB"
    with _readable(data) as image:
        try:
            image.load()
            return image if image.mode == mode else image.convert(mode)
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"corrupt image ({error})") from error


def inspect_image(data: bytes) -> tuple[int, int, bool]:
    """Return (height, width, is gray) of an image after checking that all of it can be decoded.

    Raises:
        ImageError: as ``decode_image``.
    """
    with _readable(data) as image:
        width, height = image.size
        gray = image.mode in GRAY_MODES
        # All of a JPEG is read at an eighth of its size too, for a fraction of the time.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        try:
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"corrupt image ({error})") from error
    return height, width, gray


def _readable(data: bytes) -> Image.Image:
    """Read the header of an image."""
    if not data:
        raise ImageError("empty image (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning) as error:
        reason = "not a JPEG or PNG image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ImageError(f"corrupt image ({reason})") from error
