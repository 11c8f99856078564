"""Thin helpers that speak to K2 only over the wire: `clients.connect(uri)` and the result formats of `k2 query`."""

from __future__ import annotations

from clients.connection import Connection, ResultStream, connect
from clients.errors import ClientError, ConnectError, QueryError
from clients.subscription import Arrival, AsyncSubscription, Subscription

__all__ = [
    "Arrival",
    "AsyncSubscription",
    "ClientError",
    "ConnectError",
    "Connection",
    "QueryError",
    "ResultStream",
    "Subscription",
    "connect",
]
