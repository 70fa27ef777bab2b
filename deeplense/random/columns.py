"""Names for random numbers that are stored side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Columns:
    """Random numbers of a sample, (B, R), with a number of columns per name, one name after the other.

    Args:
        counts: number of columns per name, in their order.

    Example:
        >>> columns = Columns({"views": 3, "method": 2})
        >>> columns.total
        5
        >>> columns.place("method")
        slice(3, 5, None)
    """

    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """R, the number of all columns."""
        return sum(self.counts.values())

    def place(self, name: str) -> slice:
        """Return the columns of a name. Raises KeyError if there is no such name."""
        names = list(self.counts)
        first = sum(self.counts[each] for each in names[: names.index(name)]) if name in names else self.counts[name]
        return slice(first, first + self.counts[name])

    def of(self, numbers: Any, name: str) -> Any:
        """Return the columns of one name, (B, count).

        Args:
            numbers: array or tensor (B, R).
            name: one of the names in `counts`.

        Raises:
            ValueError: `numbers` does not have R columns.
            KeyError: no such name.

        Example:
            >>> import numpy as np
            >>> Columns({"views": 3, "method": 2}).of(np.zeros((4, 5)), "method").shape
            (4, 2)
        """
        if numbers.shape[1] != self.total:
            raise ValueError(
                f"each sample has {numbers.shape[1]} random numbers, but {dict(self.counts)} needs {self.total}."
            )
        return numbers[:, self.place(name)]
