"""`deeplense benchmark data --stamps 1`: how fast `deeplense pack` reads FITS stamps, compared with astropy, and with
reading their bytes and nothing else."""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deeplense.data.fits_headers import BLOCK, CARD
from deeplense.data.image_files import Reading, load_image
from deeplense.data.records import Record
from jobs.benchmark.timing import Row, compare

NUM_STAMPS, SIZE = 2000, 64
UNIT = "stamps/s"
CARDS = {
    "SIMPLE": "T",
    "BITPIX": "-32",
    "NAXIS": "2",
    "NAXIS1": str(SIZE),
    "NAXIS2": str(SIZE),
    "BUNIT": "'nJy'",
    "FILTER": "'r'",
    "MAGZERO": "31.4",
    "CTYPE1": "'RA---TAN'",
    "CTYPE2": "'DEC--TAN'",
    "CRVAL1": "150.1",
    "CRVAL2": "2.2",
    "CRPIX1": "32.5",
    "CRPIX2": "32.5",
    "CD1_1": "-7E-05",
    "CD1_2": "0.0",
    "CD2_1": "0.0",
    "CD2_2": "7E-05",
}


def stamp_rows(folder: Path, *, rounds: int) -> list[Row]:
    """Return the speed of reading FITS stamps of 64 x 64 pixels with all that their headers say, compared with astropy,
    which here reads the pixels alone, and with reading the bytes alone."""
    paths = list(write_stamps(folder))
    records = [Record(path, path.stem, -1, "") for path in paths]
    reading = Reading()

    def ours() -> float:
        """Read pixels and headers."""
        for record in records:
            load_image(record, reading)
        return len(records)

    rows = [compare("FITS: the bytes", ours, lambda: bytes_alone(paths), other_name="bytes", rounds=rounds, unit=UNIT)]
    try:
        importlib.import_module("astropy.io.fits")
    except ImportError as error:
        return [*rows, Row(what="FITS: astropy", note=f"not installed ({error}); pip install astropy")]
    other = compare("FITS: astropy", ours, lambda: by_astropy(paths), other_name="astropy", rounds=rounds, unit=UNIT)
    return [*rows, other]


def write_stamps(folder: Path) -> Iterator[Path]:
    """Write the stamps, yielding their paths."""
    folder.mkdir(parents=True)
    text = "".join(f"{key:8}= {value:>20}".ljust(CARD) for key, value in CARDS.items()) + "END"
    header = text.encode().ljust(BLOCK)
    generator = np.random.default_rng(0)
    for number in range(NUM_STAMPS):
        pixels = generator.normal(size=(SIZE, SIZE)).astype(">f4").tobytes()
        path = folder / f"{number}.fits"
        path.write_bytes(header + pixels.ljust(-(-len(pixels) // BLOCK) * BLOCK, b"\0"))
        yield path


def bytes_alone(paths: Sequence[Path]) -> float:
    """Read the pixels of known shape and type at a known place, the least that any reader does."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        content = os.read(descriptor, 2**20)
        os.close(descriptor)
        np.frombuffer(content, ">f4", SIZE * SIZE, BLOCK).astype(np.float32)
    return len(paths)


def by_astropy(paths: Sequence[Path]) -> float:
    """Read the pixels with astropy."""
    from astropy.io import fits

    for path in paths:
        with fits.open(path, memmap=False) as file:
            np.asarray(file[0].data, dtype=np.float32)  # type: ignore[union-attr]
    return len(paths)
