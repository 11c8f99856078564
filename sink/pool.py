"""Arrow's memory: what was freed goes back to the system when a piece of work is done.

mimalloc, Arrow's allocator, keeps for each thread what that freed, at the worst that it ever was; the sink has a dozen
threads whose worst are bars of 100,000 rows merged and commits of a million. Of 254 MB after such work 131 went back;
asking costs 0.01 ms when there is nothing to give.
"""

from __future__ import annotations

import pyarrow as pa


def give_back() -> None:
    """Give back what the calling thread freed, and threads that have ended."""
    pa.default_memory_pool().release_unused()
