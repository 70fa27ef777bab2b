"""Safe reading of pickles: an interpreter of the opcodes that numpy and plain containers are written with.

Nothing is imported and nothing is called: the few names that numpy writes are inert tokens, and are accepted only in
the forms in which numpy writes them. Everything else is refused. Here a pickle is a tree: a string, a number or an
array of numbers may be referred to twice, but not a container, so that none contains itself and none grows when it is
walked through. Time and memory stay proportional to the size of the pickle.
"""

import math
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np

MOST_BYTES = 2**30
MOST_STEPS = 4_000_000
DEEPEST = 32
"""Largest depth of nested containers."""
GROWTH = 16
"""Largest ratio of the bytes that may be referred to or encoded again to the size of the pickle, above a mebibyte."""
FREE_BYTES = 64
"""Values up to this size, such as names of columns and dtypes, may be referred to at any time."""
WIDEST_INT = 2**64
SIMPLE = re.compile(r"[biufc]\d{1,2}|[USa]\d{1,7}|O8?")


class Known(Enum):
    """Names that numpy writes in its pickles. None of them is ever called."""

    NDARRAY = auto()
    DTYPE = auto()
    RECONSTRUCT = auto()
    SCALAR = auto()
    FROM_BUFFER = auto()
    ENCODE = auto()
    BYTES = auto()


NAMES: dict[tuple[str, str], Known] = {
    ("numpy", "ndarray"): Known.NDARRAY,
    ("numpy", "dtype"): Known.DTYPE,
    ("_codecs", "encode"): Known.ENCODE,
    ("__builtin__", "bytes"): Known.BYTES,
    ("builtins", "bytes"): Known.BYTES,
}
for core in ("numpy.core", "numpy._core"):
    NAMES[f"{core}.multiarray", "_reconstruct"] = Known.RECONSTRUCT
    NAMES[f"{core}.multiarray", "scalar"] = Known.SCALAR
    NAMES[f"{core}.numeric", "_frombuffer"] = Known.FROM_BUFFER


@dataclass(eq=False)
class Unbuilt:
    """An array, or the dtype of a name, that gets its value from the state that follows."""

    name: str | None = None
    value: Any = None


CONTAINERS = (list, tuple, dict, set, frozenset)
PLAIN = (type(None), bool, int, float, str, bytes, bytearray, np.generic)
KEYS = (str, bytes, int)


def loads(content: bytes) -> Any:
    """Return the containers, numbers, strings and numpy arrays of a pickle; arrays may be read-only.

    Raises ValueError, or what Python raises for damaged numbers and texts, if it holds or is anything else.

    Example:
        >>> import pickle
        >>> loads(pickle.dumps({"names": ["a", "b"], "count": 2}))
        {'names': ['a', 'b'], 'count': 2}
    """
    check(len(content) <= MOST_BYTES, f"is a pickle of more than {MOST_BYTES} bytes")
    reading = Reading(GROWTH * len(content) + 2**20)
    for step, (opcode, argument, place) in enumerate(pickletools.genops(content)):
        check(step < MOST_STEPS, f"is a pickle of more than {MOST_STEPS} steps")
        if opcode.name == "STOP":
            check(place == len(content) - 1, "has extra bytes after its pickle")
            return reading.result()
        check(opcode.name in ACTIONS, f"holds a pickle with the opcode {opcode.name}, which data does not need")
        ACTIONS[opcode.name](reading, argument)
    raise ValueError("its pickle has no end")


def check(is_right: bool, problem: str) -> None:
    """Raise an error unless a condition holds.

    Args:
        is_right: the condition.
        problem: what is wrong, in words.

    Raises:
        ValueError: the condition does not hold.
    """
    if not is_right:
        raise ValueError(problem)


@dataclass
class Reading:
    """The state of the interpreter: the stack, the stacks below its marks, the stored values by number, and the number
    of bytes that may still be made from what was read before."""

    left: int
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def push(self, value: Any) -> None:
        """Push a value on the stack."""
        self.stack.append(value)

    def push_text(self, text: str) -> None:
        """Push text on the stack. Raises ValueError if it cannot be encoded."""
        text.encode()
        self.stack.append(text)

    def push_int(self, value: int) -> None:
        """Push an integer on the stack."""
        check(abs(value) <= WIDEST_INT, "holds an integer of more than 64 bits")
        self.stack.append(value)

    def pop(self) -> Any:
        """Pop the last value from the stack."""
        check(bool(self.stack), "its pickle takes a value from an empty stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Return the last value of the stack, which has this type."""
        check(
            bool(self.stack) and type(self.stack[-1]) is kind,
            f"its pickle adds an item to a value that is not a {kind}",
        )
        return self.stack[-1]

    def mark(self) -> None:
        """Begin a new stack above this one."""
        check(len(self.below) < DEEPEST, "its pickle is nested too deeply")
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Pop all values since the last mark."""
        check(bool(self.below), "its pickle has a container without a start")
        found, self.stack = self.stack, self.below.pop()
        return found

    def last(self, count: int) -> list[Any]:
        """Pop a number of values, in their order."""
        return [self.pop() for _ in range(count)][::-1]

    def spend(self, count: int) -> None:
        """Count bytes against the limit."""
        self.left -= count
        check(self.left >= 0, "its pickle expands far beyond its size when it is read")

    def remember(self, number: int | None = None) -> None:
        """Store the last value of the stack under a number."""
        check(bool(self.stack), "its pickle stores a value from an empty stack")
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def recall(self, number: int) -> None:
        """Push a stored value on the stack."""
        check(number in self.memo, "its pickle refers to a value that does not exist")
        thing = self.memo[number]
        thing = thing.value if isinstance(thing, Unbuilt) else thing
        check(thing is not None or self.memo[number] is None, "its pickle holds an object that contains itself")
        self.spend(max(size_of(thing) - FREE_BYTES, 0))
        check(not is_container(thing), "its pickle has the same container in two places; save a copy in each")
        self.stack.append(thing)

    def name(self, module: Any, name: Any) -> None:
        """Push the token of one of numpy's names on the stack.

        Args:
            module: name of the module.
            name: name in the module.
        """
        check(isinstance(module, str) and isinstance(name, str), "holds a pickle with a name that is not text")
        told, found = f"{module}.{name}"[:100], NAMES.get((module, name))
        check(found is not None, f"holds a pickle that tries to run {told!r}, which data does not need; do not open it")
        self.stack.append(found)

    def reduce(self) -> None:
        """Replace one of numpy's names and its arguments by what they stand for."""
        name, arguments = self.last(2)
        check(
            type(arguments) is tuple and isinstance(name, Known), "holds a pickle with a call that data does not need"
        )
        self.stack.append(made_of(name, arguments, self.spend))

    def build(self) -> None:
        """Set the state of an array or a dtype."""
        unbuilt, state = self.last(2)
        right = type(unbuilt) is Unbuilt and unbuilt.value is None and type(state) is tuple
        check(right, "holds a pickle that sets the state of an object without a state")
        unbuilt.value = array_of(state) if unbuilt.name is None else dtype_of(unbuilt.name, state)
        self.stack.append(unbuilt.value)

    def result(self) -> Any:
        """Return the only value that is left, which consists of plain values only."""
        check(len(self.stack) == 1 and not self.below, "its pickle is incomplete")
        refuse_unplain(self.stack[0])
        return self.stack[0]


def size_of(thing: Any) -> int:
    """Return the approximate number of bytes of a copy of a value."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    return len(thing) if isinstance(thing, (str, bytes, bytearray, tuple)) else 1


def is_container(thing: Any) -> bool:
    """Whether a value holds other values; a short tuple of numbers, such as a shape, does not count."""
    if isinstance(thing, tuple):
        return len(thing) > DEEPEST or any(isinstance(item, tuple) or is_container(item) for item in thing)
    return isinstance(thing, CONTAINERS) or (isinstance(thing, np.ndarray) and thing.dtype.hasobject)


def refuse_unplain(thing: Any) -> None:
    """Raise ValueError unless a value consists of plain values, with limited nesting."""
    level = [thing]
    for _ in range(DEEPEST):
        for item in level:
            known = isinstance(item, (*CONTAINERS, *PLAIN, np.ndarray))
            check(known, f"holds a {type(item).__name__} instead of numbers, strings or arrays")
        level = [inner for item in level for inner in insides(item)]
        if not level:
            return
    raise ValueError("its pickle is nested too deeply")


def insides(thing: Any) -> Iterator[Any]:
    """Yield the content of a container, of a dictionary its keys and values; nothing for other values."""
    if isinstance(thing, np.ndarray):
        yield from thing.flat if thing.dtype.hasobject else ()
    elif isinstance(thing, CONTAINERS):
        yield from thing
        yield from thing.values() if isinstance(thing, dict) else ()


def made_of(name: Known, arguments: tuple[Any, ...], spend: Callable[[int], None]) -> Any:
    """Return what one of numpy's names with its arguments stands for.

    Args:
        name: the name.
        arguments: its arguments.
        spend: counts bytes against the limit.

    Raises:
        ValueError: numpy does not write these arguments.
    """
    match name, arguments:
        case Known.RECONSTRUCT, (Known.NDARRAY, (0,), b"b" | "b"):
            return Unbuilt()
        case Known.DTYPE, (str() as text, bool() | int(), bool() | int()) if SIMPLE.fullmatch(text):
            return Unbuilt(text)
        case Known.SCALAR, (np.dtype() as dtype, bytes() as data):
            spend(len(data))
            return scalar(dtype, data)
        case Known.FROM_BUFFER, (
            bytes() | bytearray() as data,
            np.dtype() as dtype,
            tuple() as shape,
            "C" | "F" as order,
        ):
            return numbers(dtype, shape, data, order)
        case Known.ENCODE, (str() as text, "latin1"):
            spend(len(text))
            return text.encode("latin1")
        case Known.BYTES, ():
            return b""
    raise ValueError(f"holds a pickle that calls {name.name.lower()} in a way that numpy does not")


def dtype_of(name: str, state: tuple[Any, ...]) -> np.dtype:
    """Return a simple dtype of numpy.

    Args:
        name: name of the dtype.
        state: its state, with the byte order.
    """
    match state:
        case (int(), "<" | ">" | "|" | "=" as order, None, None, None, int() as size, int(), int(), *_):
            dtype = np.dtype(name).newbyteorder(order)
            check(size in (-1, dtype.itemsize), "its pickle has a dtype with two different sizes")
            return dtype
    raise ValueError("its pickle has a dtype that is not of plain numbers, strings or objects")


def array_of(state: tuple[Any, ...]) -> np.ndarray:
    """Return an array from its state."""
    match state:
        case (int(), tuple() as shape, np.dtype() as dtype, bool() | int() as fortran, bytes() as data):
            return numbers(dtype, shape, data, "F" if fortran else "C")
        case (int(), tuple() as shape, np.dtype() as dtype, bool() | int() as fortran, list() as items):
            check(
                dtype.hasobject and len(items) == count_of(shape),
                "its pickle has an array whose number of objects does not match its shape",
            )
            array = np.empty(0, dtype=object)
            array.__setstate__((1, shape, np.dtype(object), bool(fortran), items))  # type: ignore[arg-type]
            return array
    raise ValueError("its pickle has an array in a form that numpy does not write")


def count_of(shape: tuple[Any, ...]) -> int:
    """Return the number of values of an array of a shape."""
    right = all(type(size) is int and 0 <= size < 2**62 for size in shape) and len(shape) <= DEEPEST
    check(right, "its pickle has an array with an impossible shape")
    return math.prod(shape)


def numbers(dtype: np.dtype, shape: tuple[Any, ...], data: bytes | bytearray, order: str) -> np.ndarray:
    """Return an array of numbers or strings.

    Args:
        dtype: its type.
        shape: its shape.
        data: its bytes.
        order: `C` or `F`.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    count = count_of(shape)
    right = not dtype.hasobject and dtype.itemsize > 0 and count * dtype.itemsize == len(data)
    check(right, "its pickle has an array whose number of bytes does not match its shape")
    refuse_no_text(dtype, data)
    flat = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def scalar(dtype: np.dtype, data: bytes) -> Any:
    """Return a number or string of numpy.

    Args:
        dtype: its type.
        data: its bytes.
    """
    check(
        not dtype.hasobject and len(data) == dtype.itemsize, "its pickle has a number whose size differs from its dtype"
    )
    refuse_no_text(dtype, data)
    return np.frombuffer(data, dtype)[0] if data else dtype.type()


def refuse_no_text(dtype: np.dtype, data: bytes | bytearray) -> None:
    """Raise ValueError if text is not valid.

    Args:
        dtype: type of the values.
        data: their bytes.
    """
    if dtype.kind == "U" and data:
        units = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        right = (units <= 0x10FFFF) & ((units < 0xD800) | (units > 0xDFFF))
        check(bool(right.all()), "its pickle has invalid text")


def put_items(target: dict[Any, Any], pairs: list[Any]) -> None:
    """Put keys and values into a dictionary.

    Args:
        target: the dictionary.
        pairs: keys and values in turn.
    """
    check(len(pairs) % 2 == 0, "its pickle has a key without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        check(key not in target if is_key(key) else False, "its pickle has a duplicate or invalid key")
        target[key] = value


def is_key(thing: Any) -> bool:
    """Whether a value may be a key: text, or an integer that is its own hash, so that no two keys collide."""
    return isinstance(thing, KEYS) and (not isinstance(thing, int) or abs(thing) < 2**60)


def add_all(target: set[Any], items: list[Any]) -> None:
    """Add values to a set.

    Args:
        target: the set.
        items: the values.
    """
    check(all(map(is_key, items)), "its pickle has an invalid item in a set")
    target.update(items)


def dictionary(pairs: list[Any]) -> dict[Any, Any]:
    """Return a dictionary from keys and values in turn."""
    made: dict[Any, Any] = {}
    put_items(made, pairs)
    return made


def frozen(items: list[Any]) -> frozenset[Any]:
    """Return a frozen set."""
    check(all(map(is_key, items)), "its pickle has an invalid item in a set")
    return frozenset(items)


def into(kind: type, put: Callable[[Any, list[Any]], Any], *, count: int = 0) -> "Action":
    """Return the opcode that puts values into the container before them on the stack.

    Args:
        kind: type of the container.
        put: puts the values into it.
        count: number of values; 0 for all since the mark.
    """

    def act(reading: Reading, argument: Any) -> None:
        items = reading.last(count) if count else reading.since_mark()
        put(reading.top(kind), items)

    return act


def pushed(make: Callable[[list[Any]], Any], *, count: int | None = None) -> "Action":
    """Return the opcode that replaces values of the stack by something made of them.

    Args:
        make: makes the new value.
        count: number of values; None for all since the mark.
    """
    return lambda reading, argument: reading.push(make(reading.since_mark() if count is None else reading.last(count)))


def name_of(reading: Reading, argument: str) -> None:
    """Execute the opcode GLOBAL, with module and name in one argument.

    Args:
        reading: the stack.
        argument: module and name, separated by a space.
    """
    module, _, name = argument.partition(" ")
    reading.name(module, name)


Action = Callable[[Reading, Any], None]
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
INTS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
ACTIONS: dict[str, Action] = {
    **dict.fromkeys(TEXTS, Reading.push_text),
    **dict.fromkeys(BYTES, Reading.push),
    **dict.fromkeys(INTS, Reading.push_int),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), Reading.push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Reading.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Reading.recall),
    **dict.fromkeys(("PROTO", "FRAME"), lambda reading, argument: None),
    "NONE": lambda reading, argument: reading.push(None),
    "NEWTRUE": lambda reading, argument: reading.push(True),
    "NEWFALSE": lambda reading, argument: reading.push(False),
    "MARK": lambda reading, argument: reading.mark(),
    "GLOBAL": name_of,
    "STACK_GLOBAL": lambda reading, argument: reading.name(*reading.last(2)),
    "REDUCE": lambda reading, argument: reading.reduce(),
    "BUILD": lambda reading, argument: reading.build(),
    "EMPTY_TUPLE": pushed(tuple, count=0),
    "TUPLE1": pushed(tuple, count=1),
    "TUPLE2": pushed(tuple, count=2),
    "TUPLE3": pushed(tuple, count=3),
    "TUPLE": pushed(tuple),
    "EMPTY_LIST": pushed(list, count=0),
    "LIST": pushed(list),
    "EMPTY_DICT": pushed(dictionary, count=0),
    "DICT": pushed(dictionary),
    "EMPTY_SET": pushed(set, count=0),
    "FROZENSET": pushed(frozen),
    "APPEND": into(list, list.extend, count=1),
    "APPENDS": into(list, list.extend),
    "SETITEM": into(dict, put_items, count=2),
    "SETITEMS": into(dict, put_items),
    "ADDITEMS": into(set, add_all),
}
