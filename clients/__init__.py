"""What speaks to K2 only over the wire: `clients.K2(uri)` for who studies, `clients.connect(uri)` for one session."""

from __future__ import annotations

from clients.connection import Connection, ResultStream, connect
from clients.errors import ClientError, ConnectError, QueryError
from clients.link import Batches
from clients.market import K2
from clients.market_async import AsyncBatches, AsyncK2
from clients.results import Result
from clients.subscription import Arrival, AsyncSubscription, Subscription

__all__ = [
    "K2",
    "Arrival",
    "AsyncBatches",
    "AsyncK2",
    "AsyncSubscription",
    "Batches",
    "ClientError",
    "ConnectError",
    "Connection",
    "QueryError",
    "Result",
    "ResultStream",
    "Subscription",
    "connect",
]
