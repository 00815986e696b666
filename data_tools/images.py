"""Encoding, decoding and statistics of images; JPEG, PNG and WebP only, by content and not by file name."""

import contextlib
import io
import math
import sys
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

READABLE = ("JPEG", "PNG", "WEBP")
# Gray PNGs of 16 bits; Pillow's name depends on its version, and its own conversion cuts values off at 255.
DEEP_GRAY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
GRAY_MODES = ("1", "L", "LA", *DEEP_GRAY_MODES)
ORIENTATION = 0x0112  # the EXIF tag
SMALLEST_STD = 1 / 255  # dividing by the deviation of a constant channel must stay finite
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or sys.maxsize  # of one image: more must be an attack
# Of a progressive JPEG, which is decoded once for each scan; a dozen are usual. 300 kB can ask for half a minute.
MOST_SCANS = 100
MOST_SCANNED_PIXELS = 20 * MOST_PIXELS
SCAN = b"\xff\xda"  # begins a scan, and comes nowhere else in one


class ImageError(ValueError):
    """Bytes that are no readable JPEG, PNG or WebP image; the message gives the reason, the caller adds the place."""


class Orientation(NamedTuple):
    """The way from stored pixels to upright ones: mirror either axis, then exchange the two."""

    mirror_x: bool = False
    mirror_y: bool = False
    transpose: bool = False

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Return a view of stored pixels (H, W, C) as a viewer shows them."""
        pixels = pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return pixels.swapaxes(0, 1) if self.transpose else pixels


UPRIGHT = Orientation()
# By the value of the EXIF tag, which names the sides at which the stored image has its first row and column.
ORIENTATIONS = {
    2: Orientation(mirror_x=True),
    3: Orientation(mirror_x=True, mirror_y=True),
    4: Orientation(mirror_y=True),
    5: Orientation(transpose=True),
    6: Orientation(mirror_y=True, transpose=True),
    7: Orientation(mirror_x=True, mirror_y=True, transpose=True),
    8: Orientation(mirror_x=True, transpose=True),
}


class ImageFacts(NamedTuple):
    """Properties from the header of an image, upright; ``extension`` is ``jpg``, ``png`` or ``webp``."""

    height: int
    width: int
    gray: bool
    extension: str


class _OneError(contextlib.ContextDecorator):
    """Turns every error of Pillow into an ImageError; Pillow documents no list of them."""

    # A class, because a generator would be made anew for each call, which tiny images feel.
    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Image.UnidentifiedImageError):
            raise ImageError("corrupt image (not a JPEG, PNG or WebP image)") from error
        if isinstance(error, Exception) and not isinstance(error, (ImageError, MemoryError)):
            raise ImageError(f"corrupt image ({str(error) or type(error).__name__})") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels, (H, W) gray or (H, W, 3) RGB, without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def decode_pixels(data: bytes, channels: int) -> np.ndarray:
    """Decode to upright pixels (H, W, ``channels``) in uint8: gray (1) or RGB (3)."""
    with open_image(data) as image:
        orientation = orientation_of(image)
        load_pixels(image)
        pixels = np.asarray(with_channels(image, channels))
    return orientation.upright(pixels.reshape(*pixels.shape[:2], channels))


def read_header(data: bytes) -> ImageFacts:
    """Return the properties in the header, without decoding."""
    with open_image(data) as image:
        return _facts(image)


def inspect_image(data: bytes) -> ImageFacts:
    """Return the properties in the header, after checking that all of the image can be decoded."""
    with open_image(data) as image:
        facts = _facts(image)
        # All of a JPEG is read at an eighth of its size too, for a fraction of the time.
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        load_pixels(image)
    return facts


def _facts(image: Image.Image) -> ImageFacts:
    extension = {"PNG": "png", "WEBP": "webp"}.get(image.format or "", "jpg")
    size = (image.width, image.height) if orientation_of(image).transpose else (image.height, image.width)
    return ImageFacts(*size, image.mode in GRAY_MODES, extension)


def orientation_of(image: Image.Image) -> Orientation:
    """Return the orientation in the EXIF header of an opened image that is not loaded; upright if it has none."""
    if "exif" not in image.info:
        return UPRIGHT
    # As viewers do: damaged EXIF data do not make an image unreadable.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ORIENTATIONS.get(image.getexif().get(ORIENTATION, 1), UPRIGHT)
    return UPRIGHT


@_OneError()
def load_pixels(image: Image.Image) -> None:
    """Decode an opened image."""
    image.load()


@_OneError()
def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return a loaded image as gray (``channels`` 1) or RGB (3); gray of 16 bits is scaled to 8."""
    if image.mode in DEEP_GRAY_MODES:
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 becomes 255
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's of transparency that is dropped
        return image.convert(mode)


@_OneError()
def open_image(data: bytes) -> Image.Image:
    """Read the header of an image; what is so large that it must be an attack is refused."""
    if not data:
        raise ImageError("empty image (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # EXIF data that are damaged
        # Pillow warns above its limit, and refuses above twice as much.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=READABLE)
    if image.info.get("progressive"):
        scans = data.count(SCAN)
        if scans > MOST_SCANS or scans * image.width * image.height > MOST_SCANNED_PIXELS:
            raise ImageError(f"a progressive JPEG of {image.width} x {image.height} pixels in {scans} scans")
    return image


@dataclass
class ImageStatistics:
    """Statistics of some images. Those of parts, merged in any order, equal those of the whole.

    ``sizes`` are (height, width), the first two different ones. Pixels are summed over the images that
    were measured, in three channels and in integers, so that no order of addition changes a digit.
    """

    sizes: list[list[int]] = field(default_factory=list)
    all_gray: bool = True
    pixels: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    sums_of_squares: list[int] = field(default_factory=lambda: [0, 0, 0])

    def see(self, facts: ImageFacts) -> None:
        """Count the size and color of one image."""
        self.merge(ImageStatistics([[facts.height, facts.width]], facts.gray))

    def measure(self, pixels: np.ndarray) -> None:
        """Count pixels (..., C) in uint8; one channel counts as three equal ones."""
        rows = pixels.reshape(-1, pixels.shape[-1])
        sums, squares = rows.sum(axis=0, dtype=np.int64), np.square(rows, dtype=np.int64).sum(axis=0)
        three = [np.broadcast_to(values, 3).tolist() for values in (sums, squares)]
        self.merge(ImageStatistics([], True, len(rows), *three))

    def merge(self, other: "ImageStatistics") -> None:
        """Add the statistics of other images."""
        new = [size for size in other.sizes if size not in self.sizes]
        self.sizes = [*self.sizes, *new][:2]
        self.all_gray = self.all_gray and other.all_gray
        self.pixels += other.pixels
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.sums_of_squares = [a + b for a, b in zip(self.sums_of_squares, other.sums_of_squares, strict=True)]

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) if all images have one size, else None; C is 1 if all are gray."""
        if len(self.sizes) != 1:
            return None
        height, width = self.sizes[0]
        return (1 if self.all_gray else 3), height, width

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel, of pixels in [0, 1], rounded to 6 digits."""
        channels = self.image_shape[0] if self.image_shape else 3
        mean = [total / self.pixels / 255 for total in self.sums]
        variances = [
            (self.pixels * squares - total**2) / self.pixels**2
            for total, squares in zip(self.sums, self.sums_of_squares, strict=True)
        ]
        std = [max(math.sqrt(variance) / 255, SMALLEST_STD) for variance in variances]
        return tuple(round(v, 6) for v in mean[:channels]), tuple(round(v, 6) for v in std[:channels])
