"""Single images: what cannot be decoded is named, whatever Pillow calls it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_tools.images import ImageError, ImageFacts, decode_pixels, encode_png, inspect_image, read_header

READERS = [read_header, inspect_image, lambda data: decode_pixels(data, 3)]


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
    with pytest.raises(ImageError, match=r"empty image|not a JPEG, PNG or WebP"):
        read(data)


@pytest.mark.parametrize("read", READERS[1:])
def test_a_cut_image_is_an_image_error(read):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(stream, "JPEG")
    with pytest.raises(ImageError, match="corrupt image"):
        read(stream.getvalue()[:-200])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_loses_nothing(shape):
    pixels = np.random.default_rng(2).integers(256, size=shape, dtype=np.uint8)
    assert np.array_equal(decode_pixels(encode_png(pixels), 1 if len(shape) == 2 else 3).reshape(shape), pixels)


def png_of_16_bits(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_of_16_bits_is_scaled_to_the_nearest_of_8(channels):
    values = np.arange(2**16).reshape(256, 256)
    found = decode_pixels(png_of_16_bits(values), channels)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    assert np.array_equal(found, expected[..., None].repeat(channels, axis=2))


@pytest.mark.parametrize("read", READERS[:2])
def test_gray_of_16_bits_is_gray(read):
    assert read(png_of_16_bits(np.full((5, 7), 40_000))) == (5, 7, True, "png")


def test_a_palette_image_without_a_palette_is_an_image_error():
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(4 * 5)))
    transparent = chunk(b"tRNS", b"\xff\0")  # the second color
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + pixels + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="corrupt image"):
        decode_pixels(data, 3)


def progressive(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan so often that it has that many."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_progressive_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    assert read_header(progressive(32, 32, 90)).width == 32
    with pytest.raises(ImageError, match="a progressive JPEG of 32 x 32 pixels in 101 scans"):
        read_header(progressive(32, 32, 101))
    with pytest.raises(ImageError, match="a progressive JPEG of 9000 x 9000 pixels in 30 scans"):
        read_header(progressive(9000, 9000, 30))
    assert decode_pixels(progressive(600, 400, 12), 3).shape == (400, 600, 3)


def stored(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def color(width: int = 31, height: int = 17, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(256, size=(height, width, 3), dtype=np.uint8))


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


ALPHA = bytes(range(256))
KINDS = {
    "gray": stored(color().convert("L"), "PNG"),
    "bits": stored(color().convert("1"), "PNG"),
    "gray and alpha": stored(color().convert("LA"), "PNG"),
    "gray with a transparent value": stored(color().convert("L"), "PNG", transparency=5),
    "gray jpeg": stored(color().convert("L"), "JPEG"),
    "color and alpha": stored(color().convert("RGBA"), "PNG"),
    "webp and alpha": stored(color().convert("RGBA"), "WEBP", lossless=True),
    "palette": stored(color().convert("P"), "PNG"),
    "palette of few bits": stored(color().quantize(4), "PNG", bits=2),
    "transparent palette": stored(color().convert("P"), "PNG", transparency=ALPHA),
    "cmyk": stored(color().convert("CMYK"), "JPEG"),
    "progressive": stored(color(), "JPEG", progressive=True),
    "one pixel": stored(color(1, 1), "JPEG"),
    "one row": stored(color(300, 1), "PNG"),
    "two photographs in one": stored(color(), "MPO", save_all=True, append_images=[color(seed=1)]),
    "animated png": stored(color(), "PNG", save_all=True, append_images=[color(seed=1)]),
    "animated webp": stored(color(), "WEBP", save_all=True, append_images=[color(seed=1)], lossless=True),
    **{f"orientation {number}": stored(color(), "JPEG", exif=oriented(number)) for number in range(10)},
    "png on its side": stored(color(), "PNG", exif=oriented(6)),
    "webp on its side": stored(color(), "WEBP", exif=oriented(8), lossless=True),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_what_pillow_shows_of_the_first_picture(kind, channels):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(KINDS[kind])))
    image.info.clear()
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(*image.size[::-1], channels)
    assert np.array_equal(decode_pixels(KINDS[kind], channels), expected)
    gray = kind.startswith(("gray", "bits"))
    for read in (read_header, inspect_image):
        facts = read(KINDS[kind])
        assert facts[:3] == (*expected.shape[:2], gray)
        assert facts.extension == Image.open(io.BytesIO(KINDS[kind])).format.lower().replace("jpeg", "jpg").replace(
            "mpo", "jpg"
        )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", [b"XXXX", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_an_image_with_damaged_exif_data_is_upright(damage):
    image = color()
    data = stored(image, "JPEG", exif=oriented(6), quality=100).replace(b"JFIF", b"JFXX")  # dpi is looked for in EXIF
    at = data.index(b"Exif\0\0") + 6
    data = data[:at] + damage + data[at + len(damage) :]
    assert read_header(data) == ImageFacts(17, 31, False, "jpg")
    assert decode_pixels(data, 3).shape == (17, 31, 3)


def test_colors_of_16_bits_lose_the_lower_byte():
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    rows = b"\0" + struct.pack(">6H", 0, 255, 65535, 256, 384, 40_000)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode_pixels(data, 3).tolist() == [[[0, 0, 255], [1, 1, 156]]]
