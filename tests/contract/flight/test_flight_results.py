"""Results that are kept: only what must be the same each time, only at its own cut, never without a bound."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Served
from test_flight_sessions import Client

from tests.support.fake_lake import trades


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    client = Client(served.uri)
    yield client
    client.act("CloseSession", b"")


def hits(served: Served) -> float:
    return served.registry.get_sample_value("k2_result_cache_hits_total") or 0.0


def was_kept(served: Served, client: Client, text: str) -> bool:
    before = hits(served)
    first, second = client.rows(text), client.rows(text)
    assert len(first) == len(second)
    return hits(served) == before + 1


@pytest.mark.parametrize(
    "text",
    [
        "select 41 + 1 as a",
        "select count(*) as n, sum(price) as p from market.trades where symbol = 'BTCUSDT'",
        "select upper(symbol) as s, max(price) as p from market.trades group by all order by s",
        "with t as (from market.trades limit 5) select count(*) as n from t",
    ],
)
def test_what_is_the_same_each_time_is_kept(served: Served, client: Client, text: str) -> None:
    assert was_kept(served, client, text)


@pytest.mark.parametrize(
    "text",
    [
        "select random() as r",
        "select now() as t",
        "select current_timestamp as t",
        "select current_date as d, count(*) as n from market.trades",
        "select age(timestamp '2020-01-01') as a",
        "select gen_random_uuid() as u",
        "select uuid() as u",
        "select current_setting('TimeZone') as z",
        "select txid_current() as t",
        "from market.trades using sample 5 rows",
        "show tables",
        "describe market.trades",
        "select * from duckdb_tables()",
        "select table_name from information_schema.tables",
        "from ops.sessions",
        "explain select 1",
        "select a.* from market.trades a, range(3)",
    ],
)
def test_what_may_differ_or_is_large_is_not(served: Served, client: Client, text: str) -> None:
    assert not was_kept(served, client, text)


def test_another_cut_is_another_result(served: Served, client: Client) -> None:
    text = "select count(*) as rows_so_far from market.trades"
    (first,) = client.rows(text)
    assert client.rows(text) == [first]
    start = first["rows_so_far"] + 100_000
    served.lake.publish(trades(range(start, start + 7)))
    assert client.rows(text) == [{"rows_so_far": first["rows_so_far"] + 7}]


def test_research_has_no_cut_and_is_not_kept(served: Served, client: Client) -> None:
    client.rows("create or replace table research.grows as select 1 as a")
    for text in ("select count(*) as n from research.grows", "select count(*) as n from grows"):
        assert not was_kept(served, client, text)
    client.rows("insert into research.grows values (2)")
    assert client.rows("select count(*) as n from grows") == [{"n": 2}]
    client.rows("drop table research.grows")


def test_what_a_session_sees_is_its_own(served: Served, client: Client) -> None:
    text = "select count(*) as n from instruments"
    before = client.rows(text)
    client.rows("create table instruments as select 1 as a")
    assert before == [{"n": 0}] and client.rows(text) == [{"n": 1}]
    client.rows("drop table instruments")
    zoned = "select strftime(event_time, '%H') as h from market.trades order by trade_id limit 1"
    utc = client.rows(zoned)
    client.set(timezone="Asia/Tokyo")
    assert client.rows(zoned) != utc
    client.set(timezone="UTC")
    assert client.rows(zoned) == utc
