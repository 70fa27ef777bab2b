"""Images of FITS files. Plain images are read here, in a third of the time of astropy, which reads compressed ones."""

import io
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplense.data.fits_headers import BLOCK, MOST_BLOCKS, Header, is_true, number_of, read_cards, text_of, whole_of
from deeplense.data.foreign import require_package
from deeplense.data.records import few
from deeplense.data.room import available_memory, control_group_rooms

TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
"""Type of the numbers in a file, by BITPIX."""
SHIFTED = {(8, -(2.0**7)): "i1", (16, 2.0**15): "u2", (32, 2.0**31): "u4", (64, 2.0**63): "u8"}
"""Type of integers that are stored shifted, by BITPIX and BZERO."""
AT_ONCE = 2**22
"""Largest size in bytes of a file that is read by one call, 4 MiB."""
LARGE = 2**28
"""Number of bytes of an image above which the free memory is looked at."""
MOST_HDUS, MOST_AXES = 10_000, 9
GZIP = b"\x1f\x8b"


class Hdu(NamedTuple):
    """A part of a FITS file: header and data.

    Args:
        number: its number, from 0.
        header: its cards.
        shape: shape of its image, as in numpy; empty if it has none.
        offset: position of the data in bytes.
        is_compressed: whether the image is stored in tiles in a table.
    """

    number: int
    header: Header
    shape: tuple[int, ...]
    offset: int
    is_compressed: bool

    @property
    def name(self) -> str:
        """The name of the extension; "" for none."""
        return text_of(self.header, "EXTNAME")

    @property
    def version(self) -> int:
        """The version among extensions of one name."""
        return int(number_of(self.header, "EXTVER") or 1)


class Content:
    """The bytes of a file, read when they are needed.

    Args:
        path: the file; if it is compressed by gzip, it is decompressed into memory.
        at_once: number of bytes that are read at the beginning.

    Raises:
        ValueError: it cannot be decompressed, or needs more memory than is free.
    """

    def __init__(self, path: Path, *, at_once: int = AT_ONCE) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self.file).st_size
            self.text = os.read(self.file, min(at_once, self.size))
            if self.text[:2] == GZIP:
                self.text = decompressed(self.text + self.read_rest())
                self.size = len(self.text)
        except BaseException:
            os.close(self.file)
            raise

    def read_rest(self) -> bytes:
        """Return the bytes after those that were read first."""
        pieces = []
        while piece := os.read(self.file, AT_ONCE):
            pieces.append(piece)
        return b"".join(pieces)

    def read(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on, fewer at the end of the file."""
        if start + count <= len(self.text) or len(self.text) == self.size:
            return self.text[start : start + count]
        pieces = []
        while count > 0 and (piece := os.pread(self.file, count, start)):
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return b"".join(pieces)

    def __enter__(self) -> "Content":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)


def decompressed(content: bytes) -> bytes:
    """Return the content of a gzip file. Raises ValueError if it is torn, or larger than half of the free memory."""
    most = min([available_memory(), *control_group_rooms()]) // 2
    pieces, size = [], 0
    while content:
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            try:
                piece = stream.decompress(content, AT_ONCE)
            except zlib.error as error:
                raise ValueError(f"it is not a sound gzip file ({error})") from error
            content = stream.unconsumed_tail
            size += len(piece)
            if size > most:
                raise ValueError(f"it needs more than {most / 1e9:.1f} GB of memory when it is decompressed")
            if not piece and not content and not stream.eof:
                raise ValueError("its gzip data end too early")
            pieces.append(piece)
        content = stream.unused_data if stream.unused_data[:2] == GZIP else b""
    return b"".join(pieces)


def parts_of(content: Content) -> list[Hdu]:
    """Return the parts of a FITS file.

    Args:
        content: the file.

    Raises:
        ValueError: the file is no FITS file, or ends before its data; without the name of the file.
    """
    found: list[Hdu] = []
    start = 0
    while start < content.size and len(found) < MOST_HDUS:
        if found and not content.read(start, 8).startswith(b"XTENSION"):
            break  # Bytes after the last extension have no meaning.
        header, offset = read_header(content, start)
        if not found and not is_true(header, "SIMPLE"):
            raise ValueError("it does not start with SIMPLE = T, so it is not a FITS file")
        shape, num_bytes, is_compressed = extent_of(header)
        if offset + num_bytes > content.size:
            said = f"it has {content.size} bytes, but its headers need {offset + num_bytes}; it is incomplete"
            raise ValueError(said)
        found.append(Hdu(len(found), header, shape, offset, is_compressed))
        start = offset + math.ceil(num_bytes / BLOCK) * BLOCK
    if not found:
        raise ValueError("it is empty")
    return found


def read_header(content: Content, start: int) -> tuple[dict[str, str], int]:
    """Return a header and the position after it.

    Args:
        content: the file.
        start: position of the header.

    Raises:
        ValueError: the header does not end, or is not ASCII.
    """
    cards: dict[str, str] = {}
    for number in range(MOST_BLOCKS):
        block = content.read(start + number * BLOCK, BLOCK)
        try:
            found, ends = read_cards(block)
        except UnicodeDecodeError as error:
            raise ValueError(f"its header is not ASCII text ({error.reason})") from error
        cards = found | cards if cards else found
        if ends:
            return cards, start + (number + 1) * BLOCK
        if len(block) < BLOCK:
            raise ValueError("it is not a FITS file, or it ends within a header")
    raise ValueError(f"it has a header of more than {MOST_BLOCKS} blocks")


def extent_of(header: Header) -> tuple[tuple[int, ...], int, bool]:
    """Return the shape of the image of a header (empty for none), the number of bytes of its data, and whether the
    image is compressed.

    Args:
        header: the cards.

    Raises:
        ValueError: a card that gives the size is missing or invalid.
    """
    bits, axes = whole_of(header, "BITPIX"), axes_of(header, "NAXIS")
    if bits not in TYPES:
        raise ValueError(f"BITPIX is {bits} instead of one of {', '.join(map(str, TYPES))}")
    groups, more = whole_of(header, "GCOUNT", 1), whole_of(header, "PCOUNT", 0)
    is_random = bool(axes) and axes[0] == 0 and is_true(header, "GROUPS")
    counted = axes[1:] if is_random else axes
    num_bytes = abs(bits) // 8 * groups * (more + math.prod(counted)) if counted else 0
    if num_bytes < 0:
        raise ValueError("its header gives a negative size")
    kind = text_of(header, "XTENSION")
    if kind in ("", "IMAGE") and not is_random:
        return (tuple(reversed(axes)) if math.prod(axes) else ()), num_bytes if axes else 0, False
    if kind == "BINTABLE" and is_true(header, "ZIMAGE"):
        axes = axes_of(header, "ZNAXIS")
        return (tuple(reversed(axes)) if math.prod(axes) else ()), num_bytes, True
    return (), num_bytes, False


def axes_of(header: Header, keyword: str) -> list[int]:
    """Return the lengths of the axes, the fastest first.

    Args:
        header: the cards.
        keyword: `NAXIS`, or `ZNAXIS` for a compressed image.

    Raises:
        ValueError: their number or a length is missing or impossible.
    """
    count = whole_of(header, keyword)
    if not 0 <= count <= MOST_AXES:
        raise ValueError(f"{keyword} is {count} instead of 0 to {MOST_AXES}")
    axes = [whole_of(header, f"{keyword}{k}") for k in range(1, count + 1)]
    if min(axes, default=0) < 0:
        raise ValueError(f"it has an axis of the length {min(axes)}")
    return axes


def read_data(content: Content, part: Hdu, rows: range | None = None) -> np.ndarray:
    """Return the image of a part: integers as integers, scaled ones and those with BLANK as floats, BLANK as NaN.

    Args:
        content: the file.
        part: the part, with an image.
        rows: places along its first axis; None for all.

    Raises:
        ValueError: it is compressed by a method that astropy cannot read.
    """
    refuse_large(part.shape if rows is None or part.is_compressed else (len(rows), *part.shape[1:]))
    if part.is_compressed:
        data = by_astropy(content, part)
        return data if rows is None else data[rows.start : rows.stop]
    bits = whole_of(part.header, "BITPIX")
    stored, shape, offset = np.dtype(TYPES[bits]), part.shape, part.offset
    if rows is not None:
        shape = (len(rows), *shape[1:])
        offset += rows.start * math.prod(shape[1:]) * stored.itemsize
    size = math.prod(shape)
    raw = np.frombuffer(content.read(offset, size * stored.itemsize), stored, size).reshape(shape)
    return as_values(raw, part.header, bits)


def refuse_large(shape: tuple[int, ...]) -> None:
    """Raise ValueError if an image needs more than half of the free memory."""
    needed = 8 * math.prod(shape)
    if needed > LARGE and needed > min([available_memory(), *control_group_rooms()]) // 2:
        raise ValueError(f"its image of shape {shape} needs {needed / 1e9:.0f} GB of memory; cut it into stamps")


def as_values(raw: np.ndarray, header: Header, bits: int) -> np.ndarray:
    """Return the values of stored numbers, in the byte order of the machine.

    Args:
        raw: stored numbers.
        header: the cards with BSCALE, BZERO and BLANK.
        bits: BITPIX.
    """
    scale, zero = (number_of(header, key) for key in ("BSCALE", "BZERO"))
    scale, zero = 1.0 if scale is None else scale, 0.0 if zero is None else zero
    blank = number_of(header, "BLANK") if bits > 0 else None
    shifted = SHIFTED.get((bits, zero)) if scale == 1 else None
    if blank is None and (scale, zero) == (1, 0):
        return raw.astype(raw.dtype.newbyteorder("="))
    if blank is None and shifted:
        native = raw.astype(raw.dtype.newbyteorder("="))
        top = native.dtype.type(1 << (abs(bits) - 1)) if bits == 8 else native.dtype.type(-(1 << (bits - 1)))
        return (native ^ top).view(shifted)
    values = raw.astype(np.float64) * scale + zero
    if blank is not None:
        values[raw == blank] = np.nan
    return values


def by_astropy(content: Content, part: Hdu) -> np.ndarray:
    """Return a compressed image.

    Args:
        content: the file.
        part: the part.

    Raises:
        ValueError: astropy cannot read it.
    """
    import warnings

    require_package("astropy", "astropy", "compressed images")
    from astropy.io import fits

    whole = content.read(0, content.size)
    try:
        with warnings.catch_warnings(), fits.open(io.BytesIO(whole), memmap=False) as file:
            warnings.simplefilter("ignore")
            data = np.asarray(file[part.number].data)  # type: ignore[union-attr]
    except Exception as error:  # a torn table may raise anything
        raise ValueError(f"its compressed image cannot be read ({' '.join(str(error).split())[:200]})") from error
    return data.astype(data.dtype.newbyteorder("="))


def chosen_parts(parts: Sequence[Hdu], *, bands: Sequence[str] = (), hdu: str = "") -> list[Hdu]:
    """Return the parts that hold the image of an object: one, or one for each band.

    Args:
        parts: all parts of the file.
        bands: names of the bands; those of extensions, if there are extensions of these names.
        hdu: name or number of the only part; "" to choose by `bands`.

    Raises:
        ValueError: it is not known which; without the name of the file.
    """
    images = [part for part in parts if part.shape]
    if hdu:
        found = part_called(parts, hdu)
        if found is None or not found.shape:
            what = "has no image" if found else "does not exist"
            raise ValueError(f"the extension {hdu} {what}; images are: {told_of(images)}")
        return [found]
    by_name = {name: part_called(images, name) for name in bands} if len(parts) > 1 else {}
    lacking = [name for name, part in by_name.items() if part is None]
    if by_name and not lacking:
        return [part for part in by_name.values() if part is not None]
    if len(images) == 1 and len(lacking) == len(by_name):
        return images
    if not images:
        raise ValueError("it contains no image with pixels")
    if lacking and bands:
        told = f"it has no image {few(lacking)}; its images are: {told_of(images)}"
        raise ValueError(f"{told}. Give --bands, or --hdu for a cube")
    example = ",".join(label_of(part, images) for part in images[:2])
    raise ValueError(
        f"it contains {len(images)} images: {told_of(images)}. Give --bands with the names of those that are the "
        f"bands, such as --bands {example}, or --hdu with one of them"
    )


def told_of(images: Sequence[Hdu]) -> str:
    """Return the names of images, for messages."""
    return few((label_of(part, images) for part in images), most=12) or "none"


def label_of(part: Hdu, parts: Sequence[Hdu]) -> str:
    """Return the shortest text that names a part among others: its name, NAME:VERSION, or its number.

    Args:
        part: the part.
        parts: all parts.
    """
    if not part.name:
        return str(part.number)
    alone = sum(other.name.lower() == part.name.lower() for other in parts) == 1
    return part.name if alone else f"{part.name}:{part.version}"


def part_called(parts: Sequence[Hdu], word: str) -> Hdu | None:
    """Return the part of a name, `NAME:VERSION` or number; None if there is none.

    Args:
        parts: the parts.
        word: the name; case makes no difference.

    Raises:
        ValueError: several parts have the name.
    """
    plain = word.strip().lower()
    found = [part for part in parts if part.name.lower() == plain]
    if len(found) > 1:
        versions = ", ".join(f"{part.name}:{part.version}" for part in found)
        raise ValueError(f"it has several images {word}; give one of {versions}")
    if found:
        return found[0]
    name, _, version = plain.rpartition(":")
    if name and version.isdecimal():
        found = [part for part in parts if part.name.lower() == name and part.version == int(version)]
    elif plain.isdecimal():
        found = [part for part in parts if part.number == int(plain)]
    return found[0] if found else None
