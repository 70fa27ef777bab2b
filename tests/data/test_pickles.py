"""Pickles: what numpy and plain containers are written with is read, and all else is refused, in bounded memory."""

import io
import pickle
import pickletools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplense.data.foreign import read_npy, read_npz, read_pickle
from deeplense.data.pickles import ACTIONS, loads

IMAGE = np.arange(12.0).reshape(3, 4)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
GOOD: dict[str, Any] = {
    "nothing": None,
    "numbers": [True, False, 0, 255, 65535, -1, 2**40, -(2**63), 1.5, float("inf")],
    "text": ["", "a", "číslo", b"", b"\x00\xff", "x" * 300],
    "nested": {"a": [{"b": (1, (2, 3))}, []], 7: {}, b"k": ()},
    "strings of numpy": [np.str_("a.npy"), np.str_(""), np.bytes_(b"b"), np.str_("č")],
    "numbers of numpy": [np.float64(1e-23), np.float32(1), np.int16(-4), np.uint8(9), np.bool_(True), np.complex64(1j)],
    "fortran": np.asfortranarray(IMAGE),
    "big end first": IMAGE.astype(">f4"),
    "strided": IMAGE[:, ::2],
    "single": np.array(3.5),
    "empty": np.empty((0, 4), dtype="f4"),
    "texts": np.array(["a", "bcd", ""]),
    "two names": [IMAGE.astype("f4"), np.array(["q"])],
    "truths": np.array([[True], [False]]),
}


def same(found: Any, expected: Any) -> bool:
    """Whether two things of containers and arrays are alike in type and value."""
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and found.shape == expected.shape and bool((found == expected).all())
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", GOOD)
def test_data_are_read_as_python_reads_them(kind: str, protocol: int) -> None:
    assert same(loads(pickle.dumps(GOOD[kind], protocol=protocol)), GOOD[kind])


@pytest.mark.parametrize("protocol", [4, 5])
def test_sets_are_read(protocol: int) -> None:
    assert loads(pickle.dumps([{"a", 1}, frozenset({"b"})], protocol=protocol)) == [{"a", 1}, frozenset({"b"})]


def test_the_public_files_are_read_as_numpy_and_pickle_read_them(public_data: Path) -> None:
    files = sorted(public_data.glob("deeplensesim/**/*.npy"))[:20]
    assert files
    for path in files:
        trusted = np.load(path, allow_pickle=True)
        found = read_npy(path)
        pairs = zip(found, trusted, strict=True) if trusted.dtype == object else [(found, trusted)]
        assert all(np.array_equal(one, other) for one, other in pairs)
    for path in sorted(public_data.glob("deeplense_ssl_splits/*.pkl")):
        assert same(read_pickle(path), pickle.loads(path.read_bytes()))


UNNEEDED = sorted(opcode.name for opcode in pickletools.opcodes if opcode.name not in {*ACTIONS, "STOP"})


def test_these_opcodes_are_needed_for_no_data() -> None:
    calling = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
    assert set(UNNEEDED) == calling | {"DUP", "POP", "POP_MARK", "NEXT_BUFFER", "READONLY_BUFFER"}


@pytest.mark.parametrize("name", UNNEEDED)
def test_an_opcode_that_data_do_not_need_is_refused(name: str) -> None:
    (opcode,) = (each for each in pickletools.opcodes if each.name == name)
    argument = b"os\nsystem\n" if name == "INST" else b"\x01\x00\x00\x00" if name.startswith("EXT") else b""
    length = {"EXT1": 1, "EXT2": 2}.get(name, len(argument))
    content = b"\x80\x04((((" + opcode.code.encode("latin1") + argument[:length] + b"x\n."
    with pytest.raises(ValueError, match=rf"the opcode {name}, which data does not need"):
        loads(content)


class Called:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


core: Any = np._core.multiarray  # type: ignore[attr-defined]
F8 = np.dtype("f8")
CALLS: dict[str, Any] = {
    "memory that nobody wrote": Called(np.ndarray, (32, 32), "u1"),
    "pointers": Called(np.ndarray, (2,), "O", b"\x00" * 16),
    "a codec without an end": Called(__import__("_codecs").encode, "ü" * 100, "punycode"),
    "a compressed codec": Called(__import__("_codecs").encode, "x", "zlib_codec"),
    "a dtype of nothing": Called(np.dtype, "V8", False, True),
    "a dtype of dates": Called(np.dtype, "M8", False, True),
    "a dtype by its type": Called(np.dtype, float, False, True),
    "a dtype of fields": Called(np.dtype, [("a", "f8")], False, True),
    "a subclass": Called(core._reconstruct, np.recarray, (0,), b"b"),
    "an array at once": Called(core._reconstruct, np.ndarray, (2**40,), b"d"),
    "a number of objects": Called(core.scalar, np.dtype("O"), 3),
    "a long number": Called(core.scalar, F8, b"x" * 16),
    "no text": Called(core.scalar, np.dtype("U1"), b"\xff" * 4),
    "half of a pair": Called(core.scalar, np.dtype("U1"), b"\x00\xd8\x00\x00"),
    "bytes of a number": Called(bytes, 2**30),
    "an array of what is not there": Called(
        core._reconstruct, np.ndarray, (0,), b"b", state=(1, (2**50,), F8, False, b"")
    ),
    "below 0": Called(core._reconstruct, np.ndarray, (0,), b"b", state=(1, (-1, -8), F8, False, b"x" * 64)),
    "objects from bytes": Called(
        core._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, b"\x00" * 8)
    ),
    "numbers from objects": Called(core._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), F8, False, [1.0])),
    "a state for numbers": Called(core.scalar, F8, b"\x00" * 8, state=(1,)),
    "a huge number": 10**400,
    "a huge key": {2**61: 1},
    "a number of ranges": range(3),
    "a set of floats": {1.5},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", CALLS)
def test_what_numpy_does_not_write_is_refused(tmp_path: Path, kind: str, protocol: int) -> None:
    (tmp_path / "it.pkl").write_bytes(pickle.dumps({"train": [CALLS[kind]]}, protocol=protocol))
    with pytest.raises(ValueError, match=r"it\.pkl: .*") as caught:
        read_pickle(tmp_path / "it.pkl")
    assert "\n" not in str(caught.value)


def test_an_image_of_memory_that_nobody_wrote_is_refused(tmp_path: Path) -> None:
    pair = np.empty(2, dtype=object)
    pair[0], pair[1] = CALLS["memory that nobody wrote"], 1e-23
    np.save(tmp_path / "axion.npy", pair, allow_pickle=True)
    with pytest.raises(ValueError, match=r"axion\.npy: holds a pickle that calls ndarray in a way that numpy does not"):
        read_npy(tmp_path / "axion.npy")


def laughs(empty: bytes, fill: bytes) -> bytes:
    """Containers of ten times the container before, thirty times over."""
    parts = [b"\x80\x04", b"".join(empty + b"q" + bytes([k]) + fill_with(k, fill) for k in range(30)), b"."]
    return b"".join(parts)


def fill_with(number: int, fill: bytes) -> bytes:
    """Ten references to the container before, put into this one."""
    return b"(" + (b"h" + bytes([number - 1])) * 10 + fill if number else b""


def repeated(thing: bytes, again: bytes, times: int = 30000) -> bytes:
    """A list of something and of many references to it, or calls upon it."""
    return b"\x80\x04](" + thing + again * times + b"e."


NAME = b"\x8c\x07_codecs\x8c\x06encode\x93q\x01"
BOMBS: dict[str, bytes] = {
    "lists of lists": laughs(b"]", b"e"),
    "tuples of tuples": b"\x80\x04)q\x00" + b"".join(b"h\x00" * 3 + b"\x87q\x00" for _ in range(40)) + b".",
    "itself": b"\x80\x04]q\x00h\x00a.",
    "itself in a tuple": b"\x80\x04](q\x00t.",
    "the same bytes": repeated(b"B" + struct.pack("<I", 50000) + b"x" * 50000 + b"q\x00", b"h\x00"),
    "the same text": repeated(b"X" + struct.pack("<I", 50000) + b"x" * 50000 + b"q\x00", b"h\x00"),
    "encoded again and again": repeated(
        b"X" + struct.pack("<I", 900) + b"x" * 900 + b"q\x00" + NAME + b"\x8c\x06latin1q\x02",
        b"h\x01h\x00h\x02\x86R",
    ),
    "a length beyond the end": b"\x80\x04B" + struct.pack("<I", 2**31) + b"x.",
    "a longer length": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a number of a gigabyte": b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b"x.",
    "a number of 100 kB": b"\x80\x04\x8b" + struct.pack("<i", 100000) + b"\x7f" * 20000 + b".",
    "marks": b"\x80\x04" + b"(" * 20000 + b".",
    "tuples in tuples": b"\x80\x04)" + b"\x85" * 20000 + b".",
    "tuples in tuples, twice": b"\x80\x04)" + b"\x85" * 20000 + b"q\x00h\x00\x86.",
    "lists in lists": b"\x80\x04" + b"]" * 20000 + b"a" * 19999 + b".",
    "a name in tuples": b"\x80\x04)" + b"\x85" * 20000 + b"\x8c\x01x\x93.",
    "a frame": b"\x80\x04\x95" + b"\xff" * 8 + b"K\x01K\x01.",
    "two pickles": pickle.dumps(1) + pickle.dumps(2),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_pickle_cannot_grow(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, OverflowError)):
            loads(BOMBS[kind])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2**20 + 400 * len(BOMBS[kind])


@pytest.mark.parametrize("header", ["(1000000000000,)", "(4, 4)", "(2,)", "(-3, -1)", "(0, 3)", "3", "(" * 900])
def test_a_header_that_does_not_fit_the_file_is_refused_before_memory_is_taken(tmp_path: Path, header: str) -> None:
    told = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {header}, }}\n".encode()
    path = tmp_path / "it.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(told)) + told + IMAGE[0, :3].tobytes())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"it\.npy: not a readable"):
            read_npy(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("descr", ["<U0", "|V8", "<M8[s]", "|S0", "O"])
def test_arrays_of_what_is_no_number_are_refused(tmp_path: Path, descr: str) -> None:
    told = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (100000000000,), }}\n".encode()
    (tmp_path / "it.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(told)) + told)
    with pytest.raises(ValueError, match=r"it\.npy: "):
        read_npy(tmp_path / "it.npy")


def test_an_archive_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.npz"
    np.savez_compressed(path, images=np.zeros((100, 100)))
    assert read_npz(path)["images"].shape == (100, 100)
    whole = path.read_bytes()
    claimed = whole.replace(struct.pack("<I", 80128), struct.pack("<I", 2**31))
    assert claimed != whole
    path.write_bytes(claimed)
    with pytest.raises(ValueError, match=r"it\.npz: .*not compressed as numpy does it"):
        read_npz(path)


def test_an_archive_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "it.npz", images=np.zeros((100, 100)))
    monkeypatch.setattr("deeplense.data.foreign.available_memory", lambda: 80000)
    with pytest.raises(ValueError, match=r"it\.npz: .*GB are free"):
        read_npz(tmp_path / "it.npz")


def mutations(whole: bytes, count: int, seed: int) -> list[bytes]:
    """Seeded damages: bits flipped, bytes changed, cut out, put in, doubled, the end torn off."""
    generator, made = np.random.default_rng(seed), []
    for k in range(count):
        place, length = int(generator.integers(len(whole))), int(generator.integers(1, 9))
        some = generator.bytes(length)
        made.append(
            [
                whole[:place] + bytes([whole[place] ^ (1 << int(generator.integers(8)))]) + whole[place + 1 :],
                whole[:place] + some + whole[place + length :],
                whole[:place] + whole[place + length :],
                whole[:place] + some + whole[place:],
                whole[:place] + whole[place : place + 40] + whole[place:],
                whole[:place],
            ][k % 6]
        )
    return made


def written(save: Callable[[Any], Any]) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def axion() -> np.ndarray:
    """What DeepLenseSim writes for an axion image."""
    pair = np.empty(2, dtype=object)
    pair[0], pair[1] = IMAGE, np.float64(1e-23)
    return pair


FILES: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    "numbers.npy": (written(lambda stream: np.save(stream, IMAGE)), read_npy),
    "axion.npy": (written(lambda stream: np.save(stream, axion(), allow_pickle=True)), read_npy),
    "both.npz": (written(lambda stream: np.savez_compressed(stream, images=IMAGE, label=np.array(["a"]))), read_npz),
    "index.pkl": (pickle.dumps(GOOD["nested"] | {"x": GOOD["strings of numpy"]}, protocol=3), read_pickle),
    "all.pkl": (pickle.dumps(list(GOOD.values()), protocol=5), read_pickle),
    "old.pkl": (pickle.dumps(list(GOOD.values()), protocol=0), read_pickle),
}


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    """Why a file is not read; empty where it is, to its last value."""
    try:
        return "" if repr(read(path)) else "nothing"
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_to_its_last_value_or_refused_by_name(tmp_path: Path, name: str) -> None:
    (whole, read), path, refusals = FILES[name], tmp_path / name, []
    for damaged in mutations(whole, 240, seed=3):
        path.write_bytes(damaged)
        refusals.append(refusal(read, path))
    assert any(refusals)
    assert all(said.startswith(f"{path}: ") and said.isprintable() for said in refusals if said)
