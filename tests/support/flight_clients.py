"""Every client that answers a plain SQL query, behind one call; its answer as tests.support.canonical writes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import pandas as pd
import polars as pl
import pyarrow as pa
import sqlalchemy as sa
from google.protobuf.any_pb2 import Any as AnyMessage
from pyarrow import flight

import clients
from flight_server.protocol import FlightSql_pb2 as sql
from tests.support import canonical, jdbc
from tests.support.canonical import Row
from tests.support.npm_clients import NpmClients


@dataclass(frozen=True)
class Answer:
    """`types` is None where the client has no Arrow types to show."""

    names: list[str]
    types: list[str] | None
    rows: Sequence[Row]


#: SQL to its answer; raises whatever the client raises.
Ask = Callable[[str], Answer]


def of_table(table: pa.Table, *, typed: bool = True) -> Answer:
    columns, rows = canonical.answer_of(table)
    return Answer([name for name, _ in columns], [text for _, text in columns] if typed else None, rows)


def by_pyarrow(uri: str) -> Ask:
    """pyarrow.flight with the messages made by hand."""

    def ask(query: str) -> Answer:
        command = AnyMessage()
        command.Pack(sql.CommandStatementQuery(query=query))
        with flight.connect(uri) as client:
            info = client.get_flight_info(flight.FlightDescriptor.for_command(command.SerializeToString()))
            parts = [client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
        table = pa.concat_tables(parts)
        assert info.schema == table.schema
        return of_table(table)

    return ask


def by_adbc(uri: str) -> Ask:
    """ADBC's own calls, without its DBAPI."""

    def ask(query: str) -> Answer:
        with (
            adbc_driver_flightsql.connect(uri) as database,
            adbc_driver_manager.AdbcConnection(database) as connection,
            adbc_driver_manager.AdbcStatement(connection) as statement,
        ):
            statement.set_sql_query(query)
            stream, _ = statement.execute_query()
            return of_table(pa.RecordBatchReader._import_from_c(stream.address).read_all())

    return ask


def by_dbapi(uri: str) -> Ask:
    """DBAPI 2.0, value by value, as Python's own objects."""

    def ask(query: str) -> Answer:
        with _quiet_connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            names = [column[0] for column in cursor.description]
            return Answer(names, None, [[_of_python(value) for value in row] for row in cursor.fetchall()])

    return ask


def by_pandas(uri: str) -> Ask:
    def ask(query: str) -> Answer:
        with _quiet_connect(uri) as connection:
            frame = pd.read_sql(query, connection, dtype_backend="pyarrow")
        arrays = [pa.chunked_array(frame.iloc[:, index].array.__arrow_array__()) for index in range(frame.shape[1])]
        return of_table(pa.Table.from_arrays(arrays, names=[str(name) for name in frame.columns]), typed=False)

    return ask


def by_polars(uri: str) -> Ask:
    def ask(query: str) -> Answer:
        with _quiet_connect(uri) as connection:
            return of_table(pl.read_database(query, connection).to_arrow(), typed=False)

    return ask


def by_polars_uri(uri: str) -> Ask:
    """polars takes the driver's name from the URI's scheme, so that it has to be `flightsql`."""
    named = f"flightsql://{uri.rpartition('/')[2]}?transport=tcp"

    def ask(query: str) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = pl.read_database_uri(query, named, engine="adbc")
        return of_table(frame.to_arrow(), typed=False)

    return ask


def by_sqlalchemy(uri: str) -> Ask:
    engine = sqlalchemy_engine(uri)

    def ask(query: str) -> Answer:
        with engine.connect() as connection:
            result = connection.exec_driver_sql(query)
            return Answer(list(result.keys()), None, [[_of_python(value) for value in row] for row in result])

    return ask


def sqlalchemy_engine(uri: str) -> sa.Engine:
    """SQLAlchemy over ADBC (the package sqlalchemy-adbc)."""
    return sa.create_engine(f"adbc+flightsql://{uri.rpartition('/')[2]}?tls=false", poolclass=sa.NullPool)


def by_k2(uri: str) -> Ask:
    """Our own helper."""

    def ask(query: str) -> Answer:
        with clients.connect(uri) as connection:
            return of_table(connection.arrow(query))

    return ask


def by_jdbc(uri: str) -> Ask:
    jdbc.start_jvm()

    def ask(query: str) -> Answer:
        with jdbc.connected(uri) as connection:
            names, rows = jdbc.query(connection, query)
        return Answer(names, None, rows)

    return ask


def by_npm(client: str) -> Callable[[NpmClients], Ask]:
    def of(node: NpmClients) -> Ask:
        def ask(query: str) -> Answer:
            answer = node.ask(client, "query", sql=query)
            return Answer([c[0] for c in answer["columns"]], [c[1] for c in answer["columns"]], answer["rows"])

        return ask

    return of


def _quiet_connect(uri: str) -> dbapi.Connection:
    return dbapi.connect(uri, autocommit=True)


def _of_python(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return canonical.instant(value.value, "ns", zoned=value.tzinfo is not None)
    if isinstance(value, datetime):
        zoned = value.tzinfo is not None
        micros = (value.replace(tzinfo=None) - datetime(1970, 1, 1)) // _MICROSECOND
        return canonical.instant(micros, "us", zoned=zoned)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        micros = ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
        return canonical.clock_time(micros, "us")
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bytes):
        return canonical.binary(value)
    if isinstance(value, pa.MonthDayNano):
        return canonical.interval(*value)
    if isinstance(value, float):
        return canonical.number(value)
    if isinstance(value, (list, tuple)):
        return [_of_python(item) for item in value]
    if isinstance(value, dict):
        return {key: _of_python(item) for key, item in value.items()}
    return value


_MICROSECOND = datetime.resolution
