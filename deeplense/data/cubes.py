"""Layout of cubes: FITS or .npy files with many images, one file for all bands or one for each."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from deeplense.data.fits_files import Content, Hdu, chosen_parts, parts_of, read_data
from deeplense.data.fits_headers import BLOCK, Header, scale_of, text_of
from deeplense.data.folders import Leftovers, images_in, notes_on
from deeplense.data.foreign import read_header
from deeplense.data.image_files import FITS, NPY, said, same_scale, stem_of, suffix_of
from deeplense.data.records import UNLABELLED, Facts, Layout, Loaded, Record, few, number_kind

BAND = "{band}"


class Cube:
    """A file with many images, of which one is read at a time.

    Args:
        path: .npy or FITS file of an array (N, H, W) or (N, C, H, W).
        hdu: name or number of the extension of a FITS file; "" for the only one with an image.

    Raises:
        ValueError: the file is unreadable, or holds something else; the message names it.
    """

    def __init__(self, path: Path, hdu: str = "") -> None:
        self.path, self.hdu = path, hdu
        self.header: Header = {}
        self.is_whole = False
        if suffix_of(path.name).lower() in NPY:
            self.shape = self.of_npy().shape
        else:
            with opened(path) as content:
                part = self.part_in(content)
                self.shape, self.header = part.shape, part.header
                self.is_whole = part.is_compressed or path.name.lower().endswith(".gz")
        if len(self.shape) not in (3, 4) or 0 in self.shape:
            raise ValueError(f"{path}: an array of shape {self.shape}; (N, H, W) or (N, C, H, W) is expected.")

    def of_npy(self) -> np.ndarray:
        """Return the array of a .npy file, mapped into memory. Raises ValueError if it holds no numbers."""
        try:
            with self.path.open("rb") as stream:
                shape, is_fortran, dtype = read_header(stream)
                start = stream.tell()
            if not number_kind(dtype):
                raise ValueError(f"it holds {dtype} instead of numbers")
            return np.memmap(self.path, dtype, "r", start, shape, order="F" if is_fortran else "C")
        except Exception as error:  # a torn header may raise anything
            raise ValueError(f"{self.path}: not a readable .npy file of images ({error}).") from error

    def part_in(self, content: Content) -> Hdu:
        """Return the part of a FITS file with the images."""
        try:
            (part,) = chosen_parts(parts_of(content), hdu=self.hdu)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}.") from error
        return part

    def read(self, row: int) -> np.ndarray:
        """Return an image, (C, H, W)."""
        image = self.from_fits(row) if self.header else np.array(self.of_npy()[row])
        return image[None] if image.ndim == 2 else image

    def from_fits(self, row: int) -> np.ndarray:
        """Return an image of a FITS file, as it is stored, (H, W) or (C, H, W)."""
        if self.is_whole:
            return whole_cube(self.path, self.hdu)[row]
        with opened(self.path) as content:
            return read_data(content, self.part_in(content), range(row, row + 1))[0]


def opened(path: Path) -> Content:
    """Open a FITS file. Raises ValueError, naming it, if it cannot be read."""
    try:
        return Content(path, at_once=2 * BLOCK)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}.") from error


@lru_cache(maxsize=64)
def whole_cube(path: Path, hdu: str) -> np.ndarray:
    """Return all images of a compressed FITS file.

    Args:
        path: the file.
        hdu: name or number of the extension.
    """
    with opened(path) as content:
        (part,) = chosen_parts(parts_of(content), hdu=hdu)
        return read_data(content, part)


def cubes(source: Path, *, bands: Sequence[str] = (), pattern: str = "", hdu: str = "") -> Layout:
    """Return the layout of cubes: a folder with a file of N images for each band, or one file of all bands.

    Images have no names; a catalogue describes them by their order.

    Args:
        source: folder, or file of (N, H, W) or (N, C, H, W).
        bands: names of the bands, in order; in a folder those of the files.
        pattern: names of the files, such as `cube_{band}.fits`; "" for `{band}` with any ending.
        hdu: name or number of the extension of a FITS file; "" for the only one with an image.

    Raises:
        ValueError: there are no cubes, or they differ in shape; the message names the file.
    """
    leftovers: Leftovers = {}
    paths = [source] if source.is_file() else files_of_bands(source, bands, pattern, leftovers)
    found = [Cube(path, hdu) for path in paths]
    refuse_unlike(found)
    first = found[0]
    if source.is_file():
        names = tuple(bands)
    else:
        names = tuple(bands) or tuple(band_of(path, pattern) for path in paths)
        if len(first.shape) == 4:
            raise ValueError(
                f"{first.path}: an array of shape {first.shape}; (N, H, W) is expected, one file per band."
            )
    told = f"{len(paths)} cubes of {first.shape[0]} images each, one per band: {', '.join(path.name for path in paths)}"
    notes = [told if source.is_dir() else f"a cube of {first.shape[0]} images"]
    name, more = stem_of(source.name), tuple(paths) if source.is_dir() else ()
    records = [Record(source, f"{name}-{row:06d}", UNLABELLED, "", row, more=more) for row in range(first.shape[0])]
    facts = Facts(names if source.is_dir() else (), text_of(first.header, "BUNIT"), scale_of(first.header))

    def load(record: Record) -> Loaded:
        """Return an image of all bands."""
        return Loaded(np.concatenate([cube.read(record.row) for cube in found]), {}, facts)

    notes += notes_on(source, leftovers) if source.is_dir() else []
    return replace(Layout(source, records, load, (), ()), notes=notes, named=False)


def files_of_bands(source: Path, bands: Sequence[str], pattern: str, leftovers: Leftovers) -> list[Path]:
    """Return the file of each band in a folder, in order.

    Args:
        source: the folder.
        bands: names of the bands; empty for all, sorted.
        pattern: names of the files; "" for `{band}` with any ending.
        leftovers: reason by ignored path, extended in place.

    Raises:
        ValueError: a band has no file, or several.
    """
    found: dict[str, Path] = {}
    for path in images_in(source, leftovers, (*FITS, *NPY)):
        name = band_of(path, pattern)
        if not name or (bands and name not in bands):
            leftovers[path] = "of another band"
        elif name in found:
            raise ValueError(f"{found[name]} and {path} are the same band {name}; remove one.")
        else:
            found[name] = path
    lacking = [name for name in bands if name not in found]
    if lacking or not found:
        told = few(path.name for path in images_in(source, {}, (*FITS, *NPY))) or "no .fits or .npy files"
        raise ValueError(f"{source} has no cube of the band {few(lacking) or 'asked for'}; there are {told}.")
    return [found[name] for name in bands or found]


def band_of(path: Path, pattern: str) -> str:
    """Return the band of the file of a cube; "" if it does not fit the pattern.

    Args:
        path: the file.
        pattern: its name with `{band}`; "" for any.

    Example:
        >>> band_of(Path("hosts/cube_g.fits"), "cube_{band}.fits"), band_of(Path("hosts/g.fits"), "")
        ('g', 'g')
    """
    if not pattern:
        return stem_of(path.name)
    if pattern.count(BAND) != 1:
        raise ValueError(f"pattern={pattern!r} must contain one {BAND}, such as cube_{BAND}.fits.")
    before, _, after = pattern.partition(BAND)
    fits = path.name.lower().startswith(before.lower()) and path.name.lower().endswith(after.lower())
    return path.name[len(before) : len(path.name) - len(after)] if fits else ""


def refuse_unlike(found: Sequence[Cube]) -> None:
    """Raise ValueError, naming two files, if cubes differ in shape, unit or pixel scale."""
    first = found[0]
    for other in found[1:]:
        here, there = scale_of(first.header), scale_of(other.header)
        if other.shape != first.shape:
            raise ValueError(
                f"{first.path} has the shape {first.shape}, but {other.path} has {other.shape}; the cubes of all bands "
                "must hold the same images."
            )
        if not same_scale(here, there):
            raise ValueError(f"{first.path} has pixels of {said(here)}, but {other.path} of {said(there)}.")
        if (unit := text_of(first.header, "BUNIT")) != (another := text_of(other.header, "BUNIT")):
            raise ValueError(f"{first.path} has the unit {unit!r}, but {other.path} has {another!r}.")
