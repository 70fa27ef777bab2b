"""PNG, JPEG and TIFF: pixels stay what they are, or the file is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deeplense.data.image_files import Reading, load_image
from deeplense.data.pictures import read_picture
from deeplense.data.records import Record

GREY = np.random.default_rng(0).integers(0, 256, size=(6, 8)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, size=(6, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif", "TIFF"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_grey_pixels_keep_their_depth(tmp_path: Path, ending: str, dtype: str) -> None:
    if ending == "png" and dtype in ("int32", "float32"):
        return
    pixels = (np.random.default_rng(2).uniform(size=(6, 8)) * 60000).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
    found, bands = read_picture(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(found, pixels)
    assert (found.dtype, bands) == (np.dtype(dtype), ())


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_colours_are_the_bands_r_g_b(tmp_path: Path, ending: str) -> None:
    smooth = np.broadcast_to(np.array([200, 100, 50], np.uint8), (16, 16, 3)).copy()
    Image.fromarray(smooth).save(tmp_path / f"a.{ending}")
    found = load_image(Record(tmp_path / f"a.{ending}", "a", -1, ""), Reading())
    assert (found.image.shape, found.facts.bands) == ((3, 16, 16), ("R", "G", "B"))
    np.testing.assert_allclose(found.image[:, 0, 0], [200, 100, 50], atol=2 if ending == "jpg" else 0)


def test_palettes_and_full_opacity_are_colours(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).convert("P").save(tmp_path / "p.png")
    expected = np.array(Image.open(tmp_path / "p.png").convert("RGB"))
    np.testing.assert_array_equal(np.moveaxis(read_picture(tmp_path / "p.png")[0], 0, -1), expected)
    opaque = np.dstack([COLOUR, np.full((6, 8), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.moveaxis(read_picture(tmp_path / "a.png")[0], 0, -1), COLOUR)


def transparent(path: Path) -> None:
    Image.fromarray(np.dstack([COLOUR, GREY])).save(path)


def frames(path: Path) -> None:
    Image.fromarray(GREY).save(path.with_suffix(".tif"), save_all=True, append_images=[Image.fromarray(GREY)])
    path.with_suffix(".tif").rename(path)


def deep(path: Path) -> None:
    """A PNG of three bands of 16 bits, of which pillow reads 8."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def bomb(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


def text(path: Path) -> None:
    path.write_text("hello")


def torn(path: Path) -> None:
    Image.fromarray(COLOUR).save(path)
    path.write_bytes(path.read_bytes()[:90])


def webp(path: Path) -> None:
    Image.fromarray(COLOUR).save(path, "GIF")


def cmyk(path: Path) -> None:
    Image.fromarray(COLOUR).convert("CMYK").save(path, "TIFF")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (transparent, "transparent pixels"),
        (frames, "2 frames"),
        (deep, "16 bits, of which only 8"),
        (bomb, "too many pixels"),
        (text, "not a readable PNG"),
        (torn, "cannot be used"),
        (webp, "not a readable PNG"),
        (cmyk, "colour mode CMYK"),
    ],
)
def test_a_picture_whose_pixels_would_change_is_refused_by_name(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as raised:
        read_picture(tmp_path / "a.png")
    assert "a.png" in str(raised.value)
    assert "\n" not in str(raised.value)
