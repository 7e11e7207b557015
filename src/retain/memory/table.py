"""Columns that grow together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class Table:
    """A struct of arrays with amortized appends (the capacity doubles)."""

    def __init__(self, dtypes: Mapping[str, type]) -> None:
        self.size = 0
        self._columns = {name: np.empty(0, dtype) for name, dtype in dtypes.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """A view of one column, shape (size,)."""
        return self._columns[name][: self.size]

    def append(self, count: int, **values: np.ndarray | float) -> None:
        """`count` new rows; `values` names every column."""
        size = self.size + count
        for name, column in self._columns.items():
            if size > len(column):
                grown = np.empty(max(size, 2 * len(column)), column.dtype)
                grown[: self.size] = column[: self.size]
                self._columns[name] = column = grown
            column[self.size : size] = values[name]
        self.size = size

    def keep(self, mask: np.ndarray) -> None:
        """Drop the rows where `mask` is false; the others keep their order."""
        size = int(np.count_nonzero(mask))
        for column in self._columns.values():
            column[:size] = column[: self.size][mask]
        self.size = size
