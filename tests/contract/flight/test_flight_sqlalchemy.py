"""K2 through SQLAlchemy, with the package sqlalchemy-adbc (0.3.0): Core, reflection, transactions, the ORM, pandas."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import ROWS, Served
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from common.schemas.arrow import table_schema
from tests.support.flight_clients import sqlalchemy_engine


@pytest.fixture(scope="module")
def engine(served: Served) -> Iterator[sa.Engine]:
    engine = sqlalchemy_engine(served.uri)
    yield engine
    engine.dispose()


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]


@pytest.mark.flight_sql("CommandGetDbSchemas", "CommandGetTables", client="sqlalchemy")
def test_tables_are_reflected(engine: sa.Engine) -> None:
    inspector = sa.inspect(engine)
    assert {"market", "research"} <= set(inspector.get_schema_names())
    assert inspector.has_table("trades", "market") and not inspector.has_table("nope", "market")
    columns = {column["name"]: column["type"] for column in inspector.get_columns("trades", "market")}
    assert list(columns) == table_schema("trade").names
    kinds = {"price": sa.Numeric, "trade_id": sa.BigInteger, "event_time": sa.DateTime, "symbol": sa.String}
    assert all(isinstance(columns[name], kind) for name, kind in kinds.items())
    assert inspector.get_pk_constraint("trades", "market")["constrained_columns"] == []
    assert inspector.get_foreign_keys("trades", "market") == []
    # The package looks for tables of the type `table`, in small letters; Flight SQL servers say TABLE.
    assert inspector.get_table_names("market") == []


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="sqlalchemy")
def test_a_reflected_table_is_queried(engine: sa.Engine) -> None:
    trades = sa.Table("trades", sa.MetaData(), schema="market", autoload_with=engine)
    query = (
        sa.select(trades.c.side, sa.func.count().label("n"), sa.func.max(trades.c.price).label("high"))
        .where(trades.c.price >= Decimal("105"), trades.c.symbol == "BTCUSDT")
        .group_by(trades.c.side)
        .order_by(trades.c.side)
    )
    with engine.connect() as connection:
        assert connection.execute(query).all() == [("BUY", 250, Decimal("109.99")), ("SELL", 250, Decimal("109.98"))]


@pytest.mark.flight_sql("BeginTransaction", "EndTransaction", client="sqlalchemy")
@pytest.mark.flight_sql("CommandPreparedStatementUpdate", client="sqlalchemy")
def test_a_transaction_is_rolled_back_or_committed(engine: sa.Engine) -> None:
    """SQLAlchemy begins by itself, and rolls back what nobody commits."""
    count = sa.text("select count(*) from t")
    with engine.connect() as connection:
        connection.execute(sa.text("create table t (i integer, s varchar)"))
        connection.commit()
        insert = sa.text("insert into t values (:i, :s)")
        connection.execute(insert, [{"i": 1, "s": "a"}, {"i": 2, "s": None}])
        assert connection.execute(count).scalar_one() == 2
        connection.rollback()
        assert connection.execute(count).scalar_one() == 0
        connection.execute(insert, {"i": 3, "s": "c"})
        connection.commit()
        assert connection.execute(sa.text("select i, s from t")).all() == [(3, "c")]


def test_the_orm_works_on_a_sessions_own_tables(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        with Session(connection) as session:
            session.add_all([Note(id=1, text="a"), Note(id=2, text="b")])
            session.flush()
            found = session.scalars(sa.select(Note).where(Note.text == "b")).one()
            assert found.id == 2
            found.text = "c"
            session.flush()
            assert session.scalars(sa.select(Note.text).order_by(Note.id)).all() == ["a", "c"]


def test_pandas_through_an_engine(engine: sa.Engine) -> None:
    frame = pd.read_sql(
        sa.text("select count(*) as n from market.trades where side = :side"), engine, params={"side": "BUY"}
    )
    assert frame["n"].tolist() == [ROWS // 2]


def test_errors_are_sqlalchemys_own(engine: sa.Engine) -> None:
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError, match="Table with name nope does not"):
        connection.execute(sa.text("select * from market.nope"))
