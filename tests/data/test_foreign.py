"""Files of others: read where sound, refused by name where torn, never obeyed."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes, integer_dtypes

from deeplense.data.foreign import read_npy, read_npz, read_pickle, refuse_bomb

IMAGE = np.arange(12.0).reshape(3, 4)


def pair(image: Any, mass: Any) -> np.ndarray:
    """An object array [image, mass], as DeepLenseSim writes it."""
    array = np.empty(2, dtype=object)
    array[0], array[1] = image, mass
    return array


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@settings(deadline=None, max_examples=40, derandomize=True)
@given(array=arrays(st.one_of(floating_dtypes(), integer_dtypes()), array_shapes(max_dims=3, max_side=4)))
def test_arrays_of_numbers_are_read_as_numpy_wrote_them(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.npy"
    np.save(path, array)
    found = read_npy(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("mass", [1e-23, np.float64(1e-23), np.array(1e-23), np.float32(1e-23)])
@pytest.mark.parametrize("image", [IMAGE, IMAGE.astype("f4"), np.asfortranarray(IMAGE), IMAGE.astype(int)])
def test_arrays_of_objects_are_read_as_numpy_wrote_them(tmp_path: Path, image: np.ndarray, mass: Any) -> None:
    np.save(tmp_path / "axion.npy", pair(image, mass), allow_pickle=True)
    found = read_npy(tmp_path / "axion.npy")
    assert found.shape == (2,)
    assert found[0].dtype == image.dtype
    np.testing.assert_array_equal(found[0], image)
    assert float(found[1]) == float(mass)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("old_names", [False, True])
def test_pickles_of_data_are_read_whatever_their_protocol(tmp_path: Path, protocol: int, old_names: bool) -> None:
    data = {"train": {"lenses": [np.str_("a.npy")], "nonlenses": np.array(["b.npy", "c"])}, "n": [1, 2.5, None, "x"]}
    content = pickle.dumps(data, protocol=protocol)
    if old_names and protocol < 4:
        content = content.replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "data.pkl").write_bytes(content)
    found = read_pickle(tmp_path / "data.pkl")
    np.testing.assert_array_equal(found["train"].pop("nonlenses"), data["train"].pop("nonlenses"))
    assert found == data


def test_the_published_index_file_is_read_as_its_copy_in_json(public_data: Path) -> None:
    folder = public_data / "deeplense_ssl_splits"
    found, expected = read_pickle(folder / "indices.pkl"), json.loads((folder / "indices.json").read_text())
    for split in ("train", "val", "test"):
        for name in ("lenses", "nonlenses"):
            assert list(found[split][name]) == expected[split][name]


def attacks(sentinel: Path) -> list[Hostile]:
    make_it = f"open({str(sentinel)!r}, 'w').close()"
    return [
        Hostile(os.system, f"touch {sentinel}"),
        Hostile(exec, make_it),
        Hostile(eval, make_it),
        Hostile(open, str(sentinel), "w"),
        Hostile(subprocess.run, ["touch", str(sentinel)]),
        Hostile(Path.touch, sentinel),
        Hostile(np.save, str(sentinel), 1),
    ]


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_not_obeyed(tmp_path: Path, which: int, protocol: int) -> None:
    sentinel = tmp_path / "sentinel.npy"
    attack = attacks(sentinel)[which]
    (tmp_path / "indices.pkl").write_bytes(pickle.dumps({"train": [attack]}, protocol=protocol))
    with pytest.raises(ValueError, match=r"indices\.pkl: holds a pickle that tries to run"):
        read_pickle(tmp_path / "indices.pkl")
    np.save(tmp_path / "axion.npy", pair(IMAGE, attack), allow_pickle=True)
    with pytest.raises(ValueError, match=r"axion\.npy: holds a pickle that tries to run"):
        read_npy(tmp_path / "axion.npy")
    assert not sentinel.exists()


def test_the_hostile_pickles_would_be_obeyed_by_a_trusting_reader(tmp_path: Path) -> None:
    for which in range(7):
        sentinel = tmp_path / f"sentinel{which}.npy"
        pickle.loads(pickle.dumps(attacks(sentinel)[which]))
        assert sentinel.exists()


@pytest.mark.parametrize("array", [IMAGE, pair(IMAGE, 1e-23)], ids=["numbers", "objects"])
def test_a_truncated_file_is_refused_by_name_wherever_it_ends(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "torn.npy"
    np.save(path, array, allow_pickle=True)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"torn\.npy"):
            read_npy(path)


def is_read_or_refused_by_name(path: Path) -> bool:
    """Whether a file gives an array, every item of which can be used, or a ValueError with its name."""
    try:
        return bool(repr(read_npy(path)))
    except ValueError as error:
        return path.name in str(error)


def test_a_damaged_header_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npy"
    np.save(path, IMAGE)
    whole = path.read_bytes()
    for place in range(128):
        for byte in (0, ord("("), ord("9"), 0xFF):
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            assert is_read_or_refused_by_name(path)


def test_an_archive_in_place_of_an_array_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", image=IMAGE)
    (tmp_path / "archive.npz").rename(tmp_path / "image.npy")
    with pytest.raises(ValueError, match=r"image\.npy"):
        read_npy(tmp_path / "image.npy")


def read_damaged(path: str) -> None:
    """Change one byte after another in a file of objects; each version is read to the last pixel, or refused."""
    whole = Path(path).read_bytes()
    for place in range(128, len(whole)):
        for byte in (0, 1, 127, 255):
            Path(path).write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            assert is_read_or_refused_by_name(Path(path))
    print("survived")


def test_a_damaged_pickle_does_not_crash_the_interpreter(tmp_path: Path) -> None:
    np.save(tmp_path / "damaged.npy", pair(IMAGE, 1e-23), allow_pickle=True)
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_foreign as t"
    command = [sys.executable, "-c", f"{program}; t.read_damaged({str(tmp_path / 'damaged.npy')!r})"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "survived\n"), ended.stderr


def test_a_truncated_archive_is_refused_by_name_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "torn.npz"
    np.savez_compressed(path, images=IMAGE)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"torn\.npz"):
            read_npz(path)


def test_an_archive_with_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "flipped.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).normal(size=(8, 8)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"flipped\.npz"):
        read_npz(path)


@pytest.mark.parametrize(
    ("method", "most"), [(zipfile.ZIP_STORED, 1), (zipfile.ZIP_DEFLATED, 1032), (zipfile.ZIP_BZIP2, 0)]
)
def test_a_part_that_says_to_be_larger_than_it_can_be_is_refused(method: int, most: int) -> None:
    """A deflated file has at most 1032 bytes for each of its own: 258 by two bits (RFC 1951)."""

    def archive(file_size: int) -> zipfile.ZipFile:
        info = zipfile.ZipInfo("image.npy")
        info.file_size, info.compress_size, info.compress_type = file_size, 10, method
        return cast(zipfile.ZipFile, SimpleNamespace(infolist=lambda: [info]))

    refuse_bomb(archive(10 * most), 10)
    with pytest.raises(ValueError, match=r"'image\.npy' is not compressed as numpy does it"):
        refuse_bomb(archive(10 * most + 1), 10)
    with pytest.raises(ValueError, match="arrays overlap in the file"):
        refuse_bomb(archive(10 * most), 9)
