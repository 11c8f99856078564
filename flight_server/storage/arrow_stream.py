"""A place in memory that DuckDB reads Arrow rows from, filled again for each run of a statement that was prepared once.

DuckDB reads a bare capsule of the Arrow C stream interface as it is. Any other Arrow object it reads through
pyarrow.dataset, which for a few hundred rows costs more than to insert them: 2 to 3 ms of CPU for each publication.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa

_NAME = b"arrow_array_stream"
#: Of struct ArrowArrayStream, the fourth of five pointers: NULL once the stream was taken.
_RELEASE = 3 * ctypes.sizeof(ctypes.c_void_p)

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


class ArrowStream:
    """`capsule` has the rows of the latest `fill` until they are taken, once. Not thread-safe."""

    def __init__(self, rows: pa.Table) -> None:
        self.capsule = rows.to_reader().__arrow_c_stream__()
        self._address = _pointer_of(self.capsule, _NAME)

    @property
    def taken(self) -> bool:
        """Whether the rows that were filled in last were taken."""
        return ctypes.c_void_p.from_address(self._address + _RELEASE).value is None

    def fill(self, rows: pa.Table) -> None:
        """Have these rows, of the same schema as the first ones. Those before must have been taken."""
        if not self.taken:
            raise RuntimeError("the rows that an Arrow stream has were not taken: nothing may be put in their place")
        rows.to_reader()._export_to_c(self._address)
