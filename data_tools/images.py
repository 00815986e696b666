"""Encoding and decoding of single images; JPEG and PNG only, by content and not by file name."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

READABLE = ("JPEG", "PNG")
# Gray PNGs of 16 bits; Pillow's name depends on its version, and its own conversion cuts values off at 255.
DEEP_GRAY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
GRAY_MODES = ("1", "L", *DEEP_GRAY_MODES)
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or sys.maxsize  # of one image: more must be an attack


class ImageError(ValueError):
    """Bytes that are not a readable JPEG or PNG image; the message gives the reason, the caller adds the place."""


class ImageFacts(NamedTuple):
    """Properties from the header of an image; ``extension`` is ``jpg`` or ``png``."""

    height: int
    width: int
    gray: bool
    extension: str


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Turn every error of Pillow into an ImageError; Pillow documents no list of them."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError("corrupt image (not a JPEG or PNG image)") from error
    except Exception as error:
        raise ImageError(f"corrupt image ({str(error) or type(error).__name__})") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels, (H, W) gray or (H, W, 3) RGB, without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def decode_pixels(data: bytes, channels: int) -> np.ndarray:
    """Decode to pixels (H, W, ``channels``) in uint8: gray (1) or RGB (3)."""
    with open_image(data) as image:
        load_pixels(image)
        pixels = np.asarray(with_channels(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def read_header(data: bytes) -> ImageFacts:
    """Return the properties in the header, without decoding."""
    with open_image(data) as image:
        return _facts(image)


def inspect_image(data: bytes) -> ImageFacts:
    """Return the properties in the header, after checking that all of the image can be decoded."""
    with open_image(data) as image:
        facts = _facts(image)
        # All of a JPEG is read at an eighth of its size too, for a fraction of the time.
        image.draft(None, (max(1, facts.width // 8), max(1, facts.height // 8)))
        load_pixels(image)
    return facts


def _facts(image: Image.Image) -> ImageFacts:
    extension = "png" if image.format == "PNG" else "jpg"
    return ImageFacts(image.height, image.width, image.mode in GRAY_MODES, extension)


@_one_error()
def load_pixels(image: Image.Image) -> None:
    """Decode an opened image."""
    image.load()


@_one_error()
def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return a loaded image as gray (``channels`` 1) or RGB (3); gray of 16 bits is scaled to 8."""
    if image.mode in DEEP_GRAY_MODES:
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 becomes 255
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


@_one_error()
def open_image(data: bytes) -> Image.Image:
    """Read the header of an image; what is so large that it must be an attack is refused."""
    if not data:
        raise ImageError("empty image (0 bytes)")
    with warnings.catch_warnings():
        # Pillow warns above its limit, and refuses above twice as much.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=READABLE)
