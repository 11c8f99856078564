"""The client of the benchmark `peers`, run by the Python of its throw-away environment: all peers in one process.

Reads a JSON object on stdin: `peers` (name, driver, uri, options, setup: statements to run first, table, only: names of
the queries that it is asked, none for all) and `queries` (name, sql with {table}, rounds, calls in each round,
warm_up). Prints one: peer -> query -> `cycle_ms` and `answer_ms`, one number a call, and `first`, what the first call
returned, to be compared. A cycle is execute and fetch on a cursor that is used again, the release of the result before
included; an answer ends when the table is there and leaves the release out.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Run = Callable[[str], Any]


@contextmanager
def connected(peer: dict[str, Any]) -> Iterator[Any]:
    """A cursor of the peer's ADBC driver, or of DuckDB in this process."""
    if peer["driver"] == "duckdb":
        import duckdb

        with duckdb.connect() as connection:
            yield connection
        return
    driver = importlib.import_module(peer["driver"])
    with (
        driver.connect(uri=peer["uri"], db_kwargs=peer["options"], autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        yield cursor


def fetched(cursor: Any, sql: str) -> Any:
    """The result as an Arrow table."""
    result = cursor.execute(sql)
    return result.to_arrow_table() if hasattr(result, "to_arrow_table") else cursor.fetch_arrow_table()


def plain(table: Any) -> list[list[str]]:
    """What can be compared: rows, or their number when there are many."""
    if table.num_rows > 1000:
        return [[str(table.num_rows)]]
    return [[str(value) for value in row.values()] for row in table.to_pylist()]


def measured(cursor: Any, sql: str) -> tuple[float, float, Any]:
    """Milliseconds of the whole cycle and of the answer alone, and the answer."""
    begin = time.perf_counter()
    release = getattr(cursor, "_clear", None)  # what `execute` does first of all, timed apart
    if release is not None:
        release()
    released = time.perf_counter()
    table = fetched(cursor, sql)
    end = time.perf_counter()
    return (end - begin) * 1000, (end - released) * 1000, table


def main() -> None:
    task = json.load(sys.stdin)
    found: dict[str, dict[str, Any]] = {peer["name"]: {} for peer in task["peers"]}
    with ExitStack() as stack:
        cursors = {peer["name"]: stack.enter_context(connected(peer)) for peer in task["peers"]}
        for peer in task["peers"]:
            for statement in peer["setup"]:
                cursor = cursors[peer["name"]]
                cursor.execute(statement)
                if hasattr(cursor, "fetch_arrow_table"):
                    cursor.fetch_arrow_table()
        for query in task["queries"]:
            asked = [peer for peer in task["peers"] if not peer["only"] or query["name"] in peer["only"]]
            texts = {peer["name"]: query["sql"].format(table=peer["table"]) for peer in asked}
            for name, sql in texts.items():  # the first call is not counted: caches, plans
                first = plain(fetched(cursors[name], sql))
                found[name][query["name"]] = {"first": first, "cycle_ms": [], "answer_ms": []}
            for _ in range(query["rounds"]):  # by turns, so that all meet the same machine
                for name, sql in texts.items():
                    for call in range(query["calls"] + query["warm_up"]):
                        cycle, answer, table = measured(cursors[name], sql)
                        del table
                        if call >= query["warm_up"]:
                            found[name][query["name"]]["cycle_ms"].append(cycle)
                            found[name][query["name"]]["answer_ms"].append(answer)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
