"""Single images: what cannot be decoded is named, whatever Pillow calls it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_tools.images import ImageError, decode_image, encode_png, inspect_image, read_header

READERS = [read_header, inspect_image, lambda data: decode_image(data, 3)]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_claims(side: int) -> bytes:
    """A square gray PNG of so many pixels, nearly all of which are missing."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("excess", [1.1, 2.1, 1000])
def test_an_image_of_too_many_pixels_is_refused_however_many(read, excess):
    with pytest.raises(ImageError, match=r"corrupt image.*pixels"):
        read(png_that_claims(round((excess * Image.MAX_IMAGE_PIXELS) ** 0.5)))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_an_image_error(read, data):
    with pytest.raises(ImageError, match=r"empty image|not a JPEG or PNG"):
        read(data)


@pytest.mark.parametrize("read", READERS[1:])
def test_a_cut_image_is_an_image_error(read):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(
        stream, "JPEG"
    )
    with pytest.raises(ImageError, match="corrupt image"):
        read(stream.getvalue()[:-200])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_loses_nothing(shape):
    pixels = np.random.default_rng(2).integers(256, size=shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(decode_image(encode_png(pixels), 1 if len(shape) == 2 else 3)), pixels)
