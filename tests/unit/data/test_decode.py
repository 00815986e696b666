"""Parts of images are what Pillow and torchvision make of them, decoded no larger than needed."""

import io
import zlib

import numpy as np
import pytest
from made_shards import encoded
from PIL import Image, ImageFile, ImageOps
from torchvision.transforms import RandomResizedCrop

from data_tools.images import ImageError
from dist_prune.data.transforms import CROP_COLUMNS, Box, Size, center_box, decode_part, random_box, resize


def picture(width: int, height: int, channels: int = 3) -> np.ndarray:
    """A photograph of a kind: smooth, with some noise; (H, W, C)."""
    rng = np.random.RandomState(0)
    coarse = Image.fromarray(rng.randint(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse).astype(int) + rng.randint(-8, 9, (height, width, 3)), 0, 255).astype(np.uint8)[
        ..., :channels
    ]


def whole(image: Size) -> Box:
    return Box(0, 0, image.width, image.height)


@pytest.mark.parametrize("box", [Box(0, 0, 90, 70), Box(13, 5, 40, 61), Box(30, 20, 20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_is_what_pillow_cuts_out_and_scales(box, channels):
    pixels = picture(90, 70, channels)
    found = decode_part(encoded(pixels), channels, Size(24, 32), lambda _: box)
    cut = Image.open(io.BytesIO(encoded(pixels))).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = np.asarray(cut.resize((32, 24), Image.BILINEAR)).reshape(24, 32, channels)
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1  # both round


def test_images_of_the_right_size_stay_as_they_are():
    pixels = picture(32, 24)
    assert np.array_equal(decode_part(encoded(pixels), 3, Size(24, 32), whole), pixels)
    assert resize(pixels, Size(24, 32)) is pixels


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (3, "RGBA"), (3, "P"), (1, "1")])
def test_images_get_the_channels_of_the_data_set(channels, mode):
    image = Image.fromarray(picture(16, 16)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    found = decode_part(stream.getvalue(), channels, Size(16, 16), whole)
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_of_16_bits_is_scaled_to_the_nearest_of_8(channels):
    values = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    found = decode_part(stream.getvalue(), channels, Size(12, 16), lambda _: Box(8, 6, 16, 12))
    expected = np.rint(values[6:18, 8:24] / 65535 * 255).astype(np.uint8)
    assert np.array_equal(found, expected[..., None].repeat(channels, axis=2))


def test_whatever_a_damaged_image_makes_the_decoder_raise_is_an_image_error(monkeypatch):
    image = Image.new("P", (8, 8))
    stream = io.BytesIO()
    image.save(stream, "PNG")

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match=r"corrupt image \(AssertionError\)"):
        decode_part(stream.getvalue(), 3, Size(8, 8), whole)


@pytest.fixture
def decoded_sizes(monkeypatch) -> list[tuple[int, int]]:
    sizes = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: sizes.append(image.size) or load(image))
    return sizes


@pytest.mark.parametrize(
    ("box", "size"),
    [
        (Box(0, 0, 640, 480), (160, 120)),  # 120 x 120 of it are asked for: a fourth is enough
        (Box(100, 100, 240, 240), (320, 240)),
        (Box(100, 100, 239, 240), (640, 480)),
        (Box(0, 0, 60, 60), (640, 480)),
    ],
)
def test_a_photograph_is_decoded_no_larger_than_its_part_needs(decoded_sizes, box, size):
    pixels = picture(640, 480)
    found = decode_part(encoded(pixels, "JPEG", quality=95), 3, Size(120, 120), lambda _: box)
    assert decoded_sizes[0] == size
    cut = Image.fromarray(pixels).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = np.asarray(cut.resize((120, 120), Image.BILINEAR)).astype(int)
    assert np.abs(found - expected).mean() < 4


@pytest.mark.parametrize("data", [b"", b"GIF89a nothing", encoded(picture(64, 64), "JPEG")[:600]])
def test_what_cannot_be_decoded_is_an_image_error(data):
    with pytest.raises(ImageError):
        decode_part(data, 3, Size(8, 8), whole)


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_an_image_of_more_pixels_than_pillow_allows_is_not_decoded(side):
    data = bytearray(encoded(picture(8, 8)))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="exceeds limit"):
        decode_part(bytes(data), 3, Size(8, 8), whole)


def test_center_boxes_are_central_have_the_proportions_and_leave_the_margin():
    assert center_box(Size(512, 600), Size(224, 224), 256 / 224) == Box(76, 32, 448, 448)
    assert center_box(Size(100, 400), Size(50, 100), 1.0) == Box(100, 0, 200, 100)
    assert center_box(Size(1, 1), Size(16, 16), 256 / 224) == Box(0, 0, 1, 1)


@pytest.mark.parametrize("image", [Size(30, 40), Size(10, 500), Size(500, 10), Size(1, 1), Size(375, 500)])
def test_random_boxes_lie_inside_of_any_image(image):
    draws = np.random.RandomState(0).random_sample((500, CROP_COLUMNS))
    for box in (random_box(image, draw) for draw in [*draws, draws[0] * 0, draws[0] * 0 + (1 - 2**-53)]):
        assert min(box.width, box.height) >= 1
        assert min(box.left, box.top) >= 0
        assert box.left + box.width <= image.width
        assert box.top + box.height <= image.height


def test_random_boxes_are_distributed_as_those_of_torchvision():
    draws = np.random.RandomState(0).random_sample((4000, CROP_COLUMNS))
    ours = np.array([random_box(Size(375, 500), draw) for draw in draws], dtype=float)  # left, top, width, height
    crop, image = RandomResizedCrop(224), Image.new("RGB", (500, 375))
    theirs = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(4000)], dtype=float)
    theirs = theirs[:, [1, 0, 3, 2]]
    for column in range(4):
        spread = theirs[:, column].std()
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 0.12 * spread  # 5 standard errors
        assert ours[:, column].std() == pytest.approx(spread, rel=0.06)


def stored_as(pixels: np.ndarray, orientation: int, form: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, form, exif=exif)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("box", [None, Box(13, 5, 20, 41)])
def test_parts_are_of_the_upright_image(orientation, box):
    data = stored_as(picture(90, 70), orientation)
    sizes = []
    found = decode_part(data, 3, Size(24, 32), lambda size: sizes.append(size) or box or whole(size))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert sizes == [upright.size[::-1]]
    box = box or whole(sizes[0])
    cut = upright.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    assert np.abs(found - np.asarray(cut.resize((32, 24), Image.BILINEAR)).astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_on_its_side_is_decoded_no_larger_than_its_part_needs(decoded_sizes, orientation):
    data = stored_as(picture(640, 480), orientation, "JPEG")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded_sizes.clear()
    found = decode_part(data, 3, Size(60, 120), lambda _: Box(20, 60, 360, 180))
    assert decoded_sizes[0] == (320, 240)
    expected = np.asarray(upright.crop((20, 60, 380, 240)).resize((120, 60), Image.BILINEAR)).astype(int)
    assert np.abs(found - expected).mean() < 1.5
