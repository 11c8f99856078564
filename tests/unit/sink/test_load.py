"""What waits under load: the plan of each level, and that trades wait last and never for good."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import ManualClock
from common.datasets import AGG_TRADES, BLOCK_TRADES, BOOK_SNAPSHOTS, DATASETS, DEPTH, QUOTES, TRADES
from common.degradation import Level
from common.errors import SettingsError
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import SinkSettings, TelemetrySettings
from common.telemetry import configure_logging
from sink.commit_policy import CommitPolicy
from sink.load import FULL, Allowance, SinkLoad, allowance, load_triggers, records_behind
from sink.load_watch import LoadWatch
from sink.stats import SinkStats

SETTINGS = SinkSettings(
    load_records_behind=(100, 500, 1_000), load_after_s=2.0, load_recover_after_s=30.0, memory_bytes_max=1_048_576
)
#: The more important, the later.
ORDER = (DEPTH.name, QUOTES.name, TRADES.name)
PARTITION = KafkaPartition("c", "t", 0)
levels = st.sampled_from(list(Level))
#: A load: records of trades behind, percent of the memory, rows read meanwhile, seconds to the next one.
loads = st.tuples(
    st.one_of(st.integers(0, 2_000), st.sampled_from([99, 100, 500, 1_000, 10**12])),
    st.one_of(st.integers(0, 100), st.sampled_from([63, 69, 70, 80, 90, 95])),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 29.5, 30.0, 100.0]),
)


@pytest.mark.parametrize(
    ("level", "waiting"),
    [
        (Level.NORMAL, set()),
        (Level.SOFT, set()),
        (Level.GRACEFUL, {DEPTH.name, BOOK_SNAPSHOTS.name, AGG_TRADES.name}),
        (Level.AGGRESSIVE, {DEPTH.name, BOOK_SNAPSHOTS.name, AGG_TRADES.name, QUOTES.name}),
        (Level.CIRCUIT_BREAK, set(DATASETS)),
    ],
)
def test_each_level_has_its_datasets_wait_whichever_load_brought_it(level: Level, waiting: set[str]) -> None:
    for behind, memory in ((level, Level.NORMAL), (Level.NORMAL, level), (level, level)):
        found = {name: allowance(name, behind=behind, memory=memory) for name in DATASETS}
        assert {name for name, allowed in found.items() if not allowed.reads} == waiting
        assert {allowed.commit_share for allowed in found.values()} == {1 / 2**memory}
        assert {allowed.reads_on for allowed in found.values()} == {memory is Level.NORMAL}


@given(levels, levels, st.booleans())
def test_what_matters_less_waits_first(behind: Level, memory: Level, trying: bool) -> None:
    reads = [allowance(name, behind=behind, memory=memory, trying=trying).reads for name in ORDER]
    assert reads == sorted(reads)
    assert not trying or allowance(BLOCK_TRADES.name, behind=behind, memory=memory, trying=True).reads


def test_a_higher_level_never_allows_more() -> None:
    for name, low, high in product(DATASETS, Level, Level):
        if low <= high:
            for less, more in (
                (allowance(name, behind=low, memory=Level.NORMAL), allowance(name, behind=high, memory=Level.NORMAL)),
                (allowance(name, behind=Level.NORMAL, memory=low), allowance(name, behind=Level.NORMAL, memory=high)),
            ):
                assert less.reads >= more.reads
                assert less.commit_share >= more.commit_share
                assert less.reads_on >= more.reads_on


def test_a_smaller_commit_holds_a_row_at_least() -> None:
    policy = CommitPolicy(rows_max=10, bytes_max=100, age_ms_max=1_000)
    assert policy.shared(0.25) == CommitPolicy(rows_max=2, bytes_max=25, age_ms_max=1_000)
    assert policy.shared(1 / 16) == CommitPolicy(rows_max=1, bytes_max=6, age_ms_max=1_000)
    assert policy.shared(1.0) == policy


@given(st.lists(loads, max_size=40))
def test_trades_are_always_read_whatever_is_behind(given_loads: list[tuple[int, int, int, float]]) -> None:
    load, now_s = SinkLoad(SETTINGS), 0.0
    for behind, _, rows, then_s in given_loads:
        load.observe(records_behind=behind, memory_percent=0, rows_read=rows, now_s=now_s)
        assert load.allowance(TRADES.name) == FULL, "nor are their commits smaller, which would take longer"
        now_s += then_s


@given(st.lists(loads, max_size=40))
def test_rest_always_brings_everything_back(given_loads: list[tuple[int, int, int, float]]) -> None:
    load, now_s, rows_read = SinkLoad(SETTINGS), 0.0, 0
    for behind, memory, rows, then_s in [*given_loads, *[(0, 0, 0, 10.0)] * 16]:
        rows_read += rows
        before = load.level
        changed = load.observe(records_behind=behind, memory_percent=memory, rows_read=rows_read, now_s=now_s)
        assert changed == (load.level is not before)
        now_s += then_s
    assert load.level is Level.NORMAL
    assert {name: load.allowance(name) for name in DATASETS} == dict.fromkeys(DATASETS, FULL)


@given(st.lists(loads, max_size=20), st.integers(0, 2_000))
@settings(max_examples=15, deadline=None)
def test_memory_that_never_goes_down_does_not_stop_the_trades_for_good(
    given_loads: list[tuple[int, int, int, float]], behind: int
) -> None:
    load, now_s, rows_read = SinkLoad(SETTINGS), 0.0, 0
    for records, memory, rows, then_s in given_loads:
        rows_read += rows
        load.observe(records_behind=records, memory_percent=memory, rows_read=rows_read, now_s=now_s)
        now_s += then_s
    read = waited = 0
    for _ in range(400):  # 200 s, in which rows are read as soon as they may be
        load.observe(records_behind=behind, memory_percent=100, rows_read=rows_read, now_s=now_s)
        now_s += 0.5
        if load.allowance(TRADES.name).reads:
            rows_read, read = rows_read + 1, read + (load.level is Level.CIRCUIT_BREAK)
            assert not load.allowance(QUOTES.name).reads or load.level < Level.CIRCUIT_BREAK
        else:
            waited += 1
    assert 4 <= read <= 8, "a try every 30 s"
    assert waited > 300
    assert load.allowance(TRADES.name).commit_share == 1 / 16


def test_a_try_lasts_until_something_came() -> None:
    load = SinkLoad(SETTINGS)

    def reads(now_s: float, rows_read: int) -> bool:
        load.observe(records_behind=0, memory_percent=99, rows_read=rows_read, now_s=now_s)
        return load.allowance(TRADES.name).reads

    assert [reads(now_s, 7) for now_s in (0.0, 1.9, 2.0, 31.9)] == [True, True, False, False]
    assert [reads(now_s, 7) for now_s in (32.0, 33.0, 100.0)] == [True] * 3, "nothing came: it is tried on"
    assert [reads(now_s, 8) for now_s in (100.5, 130.0)] == [False, False]
    assert reads(130.5, 8)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("load_records_behind", (100, 50, 1_000)),
        ("load_records_behind", (0, 50, 1_000)),
        ("load_memory_percent", (70, 80, 79, 95)),
    ],
)
def test_levels_that_do_not_rise_are_refused(setting: str, values: tuple[float, ...]) -> None:
    settings = SinkSettings().model_copy(update={setting: values})
    with pytest.raises(SettingsError, match=rf"K2_SINK_{setting.upper()} is \[.*none below the one before it"):
        load_triggers(settings)


def test_what_is_held_is_behind_too() -> None:
    other = KafkaPartition("c", "t", 1)
    read = PartitionOffsets({PARTITION: 40, other: 10})
    assert records_behind(PartitionOffsets({PARTITION: 100, other: 9}), read, 5) == 65
    assert records_behind(PartitionOffsets({KafkaPartition("c", "t", 9): 100}), read, 0) == 0, "another sink's"


# --- the watch --------------------------------------------------------------------------------------------------------


class Sink:
    """What a watch sees of a sink, as a test sets it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.rss: int | None = 0
        self.end = 0
        self.stats = {name: SinkStats(name, read=PartitionOffsets({PARTITION: 10})) for name in ORDER}

    def watch(self, **settings: object) -> LoadWatch:
        return LoadWatch(
            SETTINGS.model_copy(update=settings),
            lambda: (self.stats, PartitionOffsets({PARTITION: self.end})),
            self.clock,
            rss_bytes=lambda: self.rss,
        )

    def look(self, watch: LoadWatch) -> None:
        """Twice, as far apart as a load has to stay."""
        watch.look()
        self.clock.advance(2.0)
        watch.look()


def test_the_watch_has_workers_wait_for_the_trades_that_are_behind() -> None:
    sink = Sink()
    watch = sink.watch()
    sink.end = 1_010
    sink.look(watch)
    assert watch.level is Level.AGGRESSIVE
    assert watch.records_behind == dict.fromkeys(ORDER, 1_000)
    assert [watch.allowance(name).reads for name in ORDER] == [False, False, True]
    sink.stats = {name: SinkStats(name) for name in ORDER}
    watch.look()
    assert watch.records_behind[TRADES.name] == 1_000, "a worker that starts over does not say how far it is"


def test_the_watch_has_commits_shrink_while_memory_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(TelemetrySettings(log_format="json"), service="sink")
    sink = Sink()
    watch = sink.watch()
    sink.rss = SETTINGS.memory_bytes_max
    sink.look(watch)
    assert watch.level is Level.CIRCUIT_BREAK
    assert '"load_level": "CIRCUIT_BREAK"' in capsys.readouterr().err, "the log's own word level does not hide it"
    assert watch.allowance(TRADES.name) == Allowance(reads=False, commit_share=1 / 16, reads_on=False)
    sink.rss = None
    for _ in range(8):
        sink.clock.advance(30.0)
        watch.look()
    assert watch.level is Level.NORMAL


def test_levels_may_be_turned_off() -> None:
    sink = Sink()
    watch = sink.watch(load_levels=False)
    sink.rss, sink.end = 10**9, 10**9
    sink.look(watch)
    assert (watch.level, watch.allowance(QUOTES.name)) == (Level.NORMAL, FULL)
    assert watch.records_behind[QUOTES.name] == 10**9 - 10, "it is still told"


def test_prometheus_is_told_of_the_load() -> None:
    sink = Sink()
    watch = sink.watch()
    sink.rss, sink.end = 900_000, 60
    sink.look(watch)
    told = {
        (sample.name, sample.labels.get("dataset")): sample.value
        for metric in watch.collect()
        for sample in metric.samples
    }
    assert told[("k2_sink_load_level", None)] == Level.GRACEFUL
    assert told[("k2_sink_resident_bytes", None)] == 900_000
    assert told[("k2_sink_behind_records", QUOTES.name)] == 50
