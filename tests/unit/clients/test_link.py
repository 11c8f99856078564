"""Statements over a connection that breaks where it is told to: each row once, or an error; changes never twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import ClientError, ConnectError, QueryError
from clients.link import Link

SCHEMA = pa.schema([("n", pa.int64())])
CUT = '{"market.trades":{}}'


@dataclass
class Run:
    """What a server makes of a statement once it is asked: its rows in batches of `batch_rows`, broken behind a number
    of batches; `announced` False: broken before there is a cut."""

    rows: Sequence[int] = ()
    batch_rows: int = 2
    breaks_behind: int | None = None
    announced: bool = True
    code: str = "UNAVAILABLE"
    cut: str | None = CUT


@dataclass
class ScriptedServer:
    """Gives the runs one after another, the last one for ever, and writes down what it was asked."""

    runs: list[Run]
    asked: list[tuple[str, object]] = field(default_factory=list)
    connects: int = 0
    refusals: list[ClientError] = field(default_factory=list)

    def connect(self) -> Any:
        if self.connects and self.refusals:
            raise self.refusals.pop(0)
        self.connects += 1
        return ScriptedConnection(self)

    def link(self, resume_s_max: float = 60.0) -> Link:
        return Link(self.connect, resume_s_max=resume_s_max)


class ScriptedConnection:
    """A Connection's part that Link uses."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self.closed = False

    def stream(self, sql: str, parameters: object, *, at: object) -> Any:
        assert not self.closed
        runs = self._server.runs
        self._server.asked.append((sql, at))
        run = runs.pop(0) if len(runs) > 1 else runs[0]
        if not run.announced:
            raise QueryError("gone before it was announced", code=run.code)
        return ScriptedStream(run)

    def close(self) -> None:
        self.closed = True


class ScriptedStream:
    schema = SCHEMA

    def __init__(self, run: Run) -> None:
        self._run = run
        self.cut = run.cut

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for number, start in enumerate(range(0, len(self._run.rows), self._run.batch_rows)):
            if number == self._run.breaks_behind:
                break
            rows = self._run.rows[start : start + self._run.batch_rows]
            yield pa.record_batch([pa.array(rows, pa.int64())], schema=SCHEMA)
        if self._run.breaks_behind is not None:
            raise QueryError("gone half-way", code=self._run.code)

    def read_all(self) -> pa.Table:
        return pa.Table.from_batches(list(self), SCHEMA)

    def close(self) -> None:
        pass

    def __enter__(self) -> ScriptedStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "_pause", lambda self, seconds: None)


def numbers(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [number for batch in batches for number in batch.column("n").to_pylist()]


broken = st.builds(
    Run,
    rows=st.just(()),
    batch_rows=st.integers(1, 5),
    breaks_behind=st.integers(0, 4),
    announced=st.booleans(),
    code=st.sampled_from(["UNAVAILABLE", "UNAUTHENTICATED"]),
)


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(broken, max_size=5), st.integers(1, 5))
def test_wherever_it_breaks_each_row_is_handed_on_once(rows: list[int], runs: list[Run], last_rows: int) -> None:
    for run in runs:
        run.rows = rows
    for read in ("stream", "whole"):
        server = ScriptedServer([*runs, Run(rows, last_rows)])
        link = server.link()
        if read == "stream":
            assert numbers(link.stream("SELECT n", None, None)) == rows
        else:
            assert link.read("SELECT n", None, None).arrow()["n"].to_pylist() == rows
        cuts = [at for _, at in server.asked]
        # Once a cut was announced, nothing is read but at it.
        first = next((index for index, run in enumerate([*runs, Run()]) if run.announced), len(runs))
        assert cuts == [None] * (first + 1) + [CUT] * (len(cuts) - first - 1)
        # A whole result begins on the connection that is there, a stream on one of its own.
        assert server.connects == len(server.asked) + (read == "stream")


@given(st.permutations(range(6)), st.integers(1, 3))
def test_rows_that_come_in_another_order_end_it_with_an_error(order: list[int], batches: int) -> None:
    rows = [*range(6)]
    server = ScriptedServer([Run(rows, breaks_behind=batches), Run(order)])
    given_on = []
    stream = server.link().stream("SELECT n", None, None)
    given_rows = 2 * batches
    if order[:given_rows] == rows[:given_rows]:
        assert sorted(numbers(stream)) == rows
        return
    with pytest.raises(QueryError, match=f"after {given_rows} rows, .* in another order") as caught:
        for batch in stream:
            given_on += batch.column("n").to_pylist()
    assert given_on == rows[:given_rows]
    assert (caught.value.code, caught.value.retryable) == ("ABORTED", True)


def test_a_stream_that_comes_back_shorter_is_an_error() -> None:
    server = ScriptedServer([Run([1, 2, 3, 4], breaks_behind=2), Run([1, 2, 3])])
    with pytest.raises(QueryError, match="in another order"):
        list(server.link().stream("SELECT n", None, None))


def test_a_stream_without_a_single_cut_cannot_go_on_but_may_begin_again() -> None:
    server = ScriptedServer([Run([1, 2, 3], breaks_behind=0, cut=None), Run([1, 2, 3], breaks_behind=1, cut=None)])
    with pytest.raises(QueryError, match=r"after 2 rows .*it has no single cut; read it whole with sql"):
        list(server.link().stream("SELECT n", None, None))
    assert len(server.asked) == 2


def test_a_change_is_run_once() -> None:
    for run in (Run(announced=False), Run([1], breaks_behind=0)):
        server = ScriptedServer([run])
        with pytest.raises(QueryError, match=r"may have been made or not .*; look whether it was"):
            server.link().read("INSERT INTO research.t SELECT 1", None, None)
        assert len(server.asked) == 1


def test_a_change_is_not_streamed_and_a_session_is_not_kept() -> None:
    link = ScriptedServer([Run()]).link()
    with pytest.raises(ClientError, match="run a change with sql"):
        link.stream("DELETE FROM research.t", None, None)
    for read in (link.read, link.stream):
        with pytest.raises(ClientError, match="K2 keeps no session"):
            read("BEGIN", None, None)


def test_what_the_server_refuses_is_not_asked_again() -> None:
    server = ScriptedServer([Run(announced=False, code="INVALID_ARGUMENT")])
    with pytest.raises(QueryError, match="gone before"):
        server.link().read("SELECT n", None, None)
    assert (len(server.asked), server.connects) == (1, 1)


def test_a_server_that_does_not_come_back_is_given_up() -> None:
    server = ScriptedServer([Run(announced=False)], refusals=[ConnectError("nobody", code="UNAVAILABLE")] * 3)
    with pytest.raises(QueryError, match="gone before"):
        server.link(resume_s_max=0.0).read("SELECT n", None, None)


def test_a_login_that_is_refused_now_is_not_tried_for_ever() -> None:
    refused = ConnectError("not let in", code="UNAUTHENTICATED")
    server = ScriptedServer([Run(announced=False, code="UNAUTHENTICATED")], refusals=[refused])
    with pytest.raises(ConnectError, match="not let in"):
        server.link().read("SELECT n", None, None)


def test_a_closed_one_says_so() -> None:
    link = ScriptedServer([Run([1, 2, 3], batch_rows=1)]).link()
    stream = link.stream("SELECT n", None, None)
    link.close()
    link.close()
    with pytest.raises(ClientError, match="this K2 is closed"):
        link.read("SELECT n", None, None)
    assert next(stream).num_rows == 1  # what was here already
