"""Images of PNG, JPEG and TIFF files, read by pillow."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.data.foreign import require_package

FORMATS = ("PNG", "JPEG", "TIFF")
PNG = b"\x89PNG\r\n\x1a\n"
BITS_PER_SAMPLE = 258
"""Number of the tag of TIFF files."""
KEPT = ("L", "I;16", "I;16B", "I;16L", "I", "F", "RGB")
"""Modes whose pixels are used as they are."""


def read_picture(path: Path, content: bytes | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a picture as (H, W), or as (3, H, W) with the bands R, G, B.

    Args:
        path: the file, for messages if `content` is given.
        content: content of the file; None to read it.

    Raises:
        ValueError: it is no such picture, has several frames or transparency, or pixels that pillow would change; the
            message names the file.

    Example:
        >>> from PIL import Image
        >>> stream = io.BytesIO()
        >>> Image.fromarray(np.zeros((4, 5), np.uint8)).save(stream, "PNG")
        >>> read_picture(Path("a.png"), stream.getvalue())[0].shape
        (4, 5)
    """
    require_package("PIL", "pillow", "PNG, JPEG and TIFF files")
    from PIL import Image, UnidentifiedImageError

    try:
        content = path.read_bytes() if content is None else content
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                refuse_changed(picture, content)
                return pixels_of(picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: the picture has too many pixels ({error}); cut it into stamps.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a readable PNG, JPEG or TIFF file; copy it again, or remove it.") from error
    except Exception as error:  # a torn picture may raise anything
        raise ValueError(f"{path}: the picture cannot be used: {' '.join(str(error).split())[:300]}.") from error


def refuse_changed(picture: Any, content: bytes) -> None:
    """Raise ValueError if pillow would read other pixels than the file has.

    Args:
        picture: the open picture.
        content: content of the file.
    """
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"it has {frames} frames instead of one; save each to a file of its own")
    depth, kind = (content[24], content[25]) if content.startswith(PNG) and len(content) > 25 else (8, 0)
    tag = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    bits = max(tag) if isinstance(tag, tuple) else tag
    if (depth > 8 and kind in (2, 4, 6)) or (bits > 8 and isinstance(tag, tuple) and len(tag) > 1):
        raise ValueError(
            f"it has several bands of {max(depth, bits)} bits, of which only 8 would be kept; save it as FITS or npy"
        )
    if bits > 32:
        raise ValueError(f"it has {bits} bits per pixel, of which only 32 would be kept; save it as FITS or npy")


def pixels_of(picture: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the pixels of an open picture, and the names of its bands.

    Args:
        picture: the picture.

    Raises:
        ValueError: it has transparent pixels, or a mode that has no meaning for images of the sky.
    """
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode in ("RGBA", "LA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise ValueError("it has transparent pixels, whose value is unknown; save it without transparency")
        picture = picture.convert(picture.mode[:-1])
    if picture.mode not in KEPT:
        raise ValueError(f"it has the colour mode {picture.mode}; save it in grey or RGB")
    pixels = np.array(picture)
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3):
        raise ValueError(f"it holds {pixels.dtype} of shape {pixels.shape}")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return (np.moveaxis(pixels, -1, 0), ("R", "G", "B")) if pixels.ndim == 3 else (pixels, ())
