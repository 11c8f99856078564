"""Tables that the real sink made, read by PyIceberg, DuckDB, Polars and Spark: the same rows, to the last digit.

After commits, after compaction, after deletes that another engine made, and after a restoration to another place. Spark
needs Java 17 and Maven; without them its part skips and says why, and fails with K2_REQUIRE_CLIENTS=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extension_avro
import duckdb_extension_iceberg
import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka import Producer

from common.codec import Encoder
from common.datasets import QUOTES, TRADES, Dataset
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from k2.broker import EmbeddedBroker
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.recovery.archive import Archive
from sink.recovery.backup import back_up
from sink.recovery.folders import Folder
from sink.recovery.restore import restore
from sink.service import SinkService
from sink.table import IcebergTable
from tests.support.canonical import Row, answer_of, instant
from tests.support.kafka import eventually
from tests.support.lakes import LATER_US, lake_at, loaded
from tests.support.missing import MissingTool, skip_or_fail
from tests.support.records import quote, trade
from tests.support.spark import Spark

HUGE = Decimal("12345678901234567890.12345678")


def odd_trade(number: int) -> dict[str, Any]:
    """Values at the edges of their types, absent ones, lists and maps."""
    odd: dict[int, dict[str, Any]] = {
        1: {"quantity": HUGE, "price": Decimal("9999999999.99999999")},
        2: {"price": Decimal("0.00000001"), "transaction_time": None, "vendor_data": {}},
        3: {"trade_conditions": ["a", "", "ä€🜁"], "vendor_data": {"k": "v", "": "ü"}},
        4: {"source_sequence": 2**62, "vendor_data": {"only": "x"}},
    }
    return trade(number, **odd.get(number % 7, {}))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> LakeSettings:
    """Trades and quotes by the real sink from a real log, in several commits."""
    settings = lake_at(tmp_path_factory.mktemp("engines") / "lake")
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        made: dict[Dataset, Callable[[int], dict[str, Any]]] = {TRADES: odd_trade, QUOTES: quote}
        topics = {dataset: dataset.topic(asset_class="crypto", exchange="binance") for dataset in made}
        log = KafkaLog(kafka)
        log.ensure_topics(list(topics.values()))
        producer = Producer(kafka.client_config())
        sink = SinkService(kafka, settings, SinkSettings.load(commit_age_ms_max=20), datasets=tuple(made))
        sink.start()
        for batch in range(4):
            for dataset, make in made.items():
                encoder = Encoder(dataset, EmbeddedRegistry(), topic=topics[dataset])
                for number in range(batch * 50, batch * 50 + 50):
                    producer.produce(topics[dataset], encoder.encode(make(number)), partition=number % 4)
            producer.flush()
            end = log.end_offsets(log.topics(r"^market\.").values())
            eventually(lambda end=end: sink.drained(end))  # type: ignore[misc]
        sink.stop()
    return settings


@pytest.fixture(scope="module")
def spark(lake: LakeSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    try:
        session = Spark(lake.data_dir / "catalog.db", lake.resolved_warehouse, tmp_path_factory.mktemp("spark"))
    except MissingTool as why:
        skip_or_fail(why)
    yield session
    session.stop()


# -- the engines: all rows of a table, in one form


def by_pyiceberg(lake: LakeSettings, table: str) -> pa.Table:
    return loaded(lake, table).scan().to_arrow()


def by_duckdb(lake: LakeSettings, table: str) -> pa.Table:
    """DuckDB as it comes, with its extension; nothing of K2's server."""
    with duckdb.connect() as connection:
        for extension in (duckdb_extension_avro, duckdb_extension_iceberg):
            _load(connection, extension)
        connection.execute("SET TimeZone = 'UTC'")
        location = loaded(lake, table).metadata_location
        return connection.execute(f"FROM iceberg_scan('{location}')").to_arrow_table()


def by_polars(lake: LakeSettings, table: str) -> pa.Table:
    return pl.scan_iceberg(loaded(lake, table).metadata_location).collect().to_arrow()


def _load(connection: duckdb.DuckDBPyConnection, extension: Any) -> None:
    found = next(Path(next(iter(extension.__path__))).rglob("*.duckdb_extension"))
    connection.execute(f"LOAD '{found}'")


READERS = {"pyiceberg": by_pyiceberg, "duckdb": by_duckdb, "polars": by_polars}


def canonical_rows(table: pa.Table) -> list[Row]:
    """In the order of the log, columns by name."""
    ordered = table.select(sorted(table.column_names))
    return sorted((_plain(row) for row in answer_of(ordered)[1]), key=str)


def _plain(row: Row) -> Row:
    """Maps, which are lists of pairs here, in an order of their own."""
    return [sorted(cell) if isinstance(cell, list) and cell and isinstance(cell[0], list) else cell for cell in row]


def spark_rows(spark: Spark, table: str, like: pa.Schema) -> list[Row]:
    """Spark's JSON in the same form: times by their text, decimals with all digits, maps as sorted pairs."""
    names = sorted(like.names)
    shown = []
    for name in names:
        kind = like.field(name).type
        if pa.types.is_timestamp(kind):
            shown.append(f"unix_micros(`{name}`) as `{name}`")
        elif pa.types.is_decimal(kind):
            shown.append(f"cast(`{name}` as string) as `{name}`")
        elif pa.types.is_map(kind):
            shown.append(f"map_entries(`{name}`) as `{name}`")
        else:
            shown.append(f"`{name}`")
    rows = [[row[name] for name in names] for row in spark.sql(f"select {', '.join(shown)} from {table}")]
    for row in rows:
        for index, name in enumerate(names):
            kind = like.field(name).type
            if row[index] is None:
                continue
            if pa.types.is_timestamp(kind):
                row[index] = instant(int(row[index]), "us", zoned=True)
            elif pa.types.is_decimal(kind):
                row[index] = f"{Decimal(row[index]):f}"
            elif pa.types.is_map(kind):
                row[index] = sorted([entry["key"], entry["value"]] for entry in row[index])
    return sorted(rows, key=str)


def equal_everywhere(lake: LakeSettings, spark: Spark | None, count: int) -> list[Row]:
    """Reads both tables with every engine; the trades as PyIceberg has them."""
    for table in ("market.quotes", "market.trades"):
        expected = by_pyiceberg(lake, table)
        rows = canonical_rows(expected)
        assert expected.num_rows == (count if table == "market.trades" else 200)
        for name, read in READERS.items():
            assert canonical_rows(read(lake, table)) == rows, f"{name} reads {table} otherwise"
        if spark is not None:
            assert spark_rows(spark, table, expected.schema) == rows, f"Spark reads {table} otherwise"
    return rows


def test_all_engines_read_the_same_rows(lake: LakeSettings, spark: Spark) -> None:
    trades = by_pyiceberg(lake, "market.trades")
    assert sorted(trades["trade_id"].to_pylist()) == list(range(200))
    assert max(trades["quantity"].to_pylist()) == HUGE
    assert trades["vendor_data"].null_count > 0
    equal_everywhere(lake, spark, 200)
    # Sums that a binary float would not hold.
    with localcontext() as context:
        context.prec = 60
        total = sum(trades["quantity"].to_pylist())
    (row,) = spark.sql("select cast(sum(cast(quantity as decimal(38,8))) as string) as total from market.trades")
    assert Decimal(row["total"]) == total
    with duckdb.connect() as connection:
        seen = by_duckdb(lake, "market.trades")
        assert connection.execute("select sum(quantity) from seen").fetchall() == [(total,)]
        assert seen.num_rows == 200


def test_after_compaction(lake: LakeSettings, spark: Spark) -> None:
    before = equal_everywhere(lake, None, 200)
    report = compact(IcebergTable.open(lake, TRADES), CompactionPolicy(fan_out=2), LATER_US)
    assert report.files_after < report.files_before
    assert equal_everywhere(lake, spark, 200) == before


def test_after_deletes_by_another_engine_and_at_another_place(lake: LakeSettings, spark: Spark, tmp_path: Path) -> None:
    """Spark's deletes are files of positions, which name the data files by their whole paths."""
    spark.connect(lake.data_dir / "catalog.db", lake.resolved_warehouse)
    spark.sql("alter table market.trades set tblproperties ('write.delete.mode' = 'merge-on-read')")
    spark.sql("delete from market.trades where trade_id % 10 = 3")
    deletes = loaded(lake).inspect.delete_files()
    assert len(deletes) > 0
    rows = equal_everywhere(lake, spark, 180)
    archive = Archive(Folder(str(tmp_path / "backups"), {}))
    back_up(lake, archive)
    elsewhere = lake_at(tmp_path / "elsewhere")
    restore(archive, elsewhere)
    lake.data_dir.rename(lake.data_dir.with_name("gone"))
    try:
        assert equal_everywhere(elsewhere, None, 180) == rows
        spark.connect(elsewhere.data_dir / "catalog.db", elsewhere.resolved_warehouse)
        assert spark_rows(spark, "market.trades", by_pyiceberg(elsewhere, "market.trades").schema) == rows
    finally:
        lake.data_dir.with_name("gone").rename(lake.data_dir)
