"""Every error that K2 raises on purpose, as one tree.

    K2Error(retryable)
    ├ SettingsError
    ├ FeedError            FeedProtocolError, FeedGap, FeedClosed, FeedLimited, FeedRefused
    ├ RecordError          one bad message: dead-letter it, keep its neighbours
    ├ EncodeError          a record does not fit its schema
    ├ IncompatibleSchema   a schema may not follow those that records were written with
    ├ BrokerError          the log cannot be reached; LogTruncated: it no longer holds the offsets asked for
    ├ CatalogError         the Iceberg catalog or its files cannot be reached or read
    ├ CommitError          CommitConflict, CommitStateUnknown
    ├ MaintenanceError     Refused, Overtaken, Interrupted: a job on a table was not begun, or stopped between two steps
    ├ ReadViewError        SnapshotNotFound, SnapshotExpired, TailGap
    ├ StatementError       InvalidStatement, TableNotFound, Unsupported, StatementTimeout,
    │                      StatementCancelled, LimitExceeded
    ├ AccessError          Unauthenticated, PermissionDenied
    └ Unavailable          starting, draining, overloaded

A message is one sentence: what happened, where, and what to do. `retryable` says whether the same call may succeed
later without anything being changed by hand. A library's exception becomes one of these where the library lives.
"""

from __future__ import annotations


class K2Error(Exception):
    """Base of every error that K2 raises on purpose."""

    retryable: bool = False

    @property
    def message(self) -> str:
        return str(self)


class SettingsError(K2Error):
    """A setting is missing, out of bounds, or contradicts another one."""


class FeedError(K2Error):
    """An exchange feed misbehaved."""

    retryable = True


class FeedProtocolError(FeedError):
    """A frame does not follow the venue's protocol."""

    retryable = False


class FeedGap(FeedError):
    """The venue's own sequence shows that events are missing."""


class FeedClosed(FeedError):
    """The connection to the venue ended."""


class FeedLimited(FeedError):
    """The venue was asked too much: it wants to hear nothing for a while."""


class FeedRefused(FeedError):
    """The venue refused a request; `code` is its own code for why, None when it gave none."""

    retryable = False

    def __init__(self, message: str, *, code: object = None) -> None:
        super().__init__(message)
        self.code = code


class RecordError(K2Error):
    """Exactly one message of the log cannot be used; its neighbours can.

    `topic`, `partition` and `offset` are the message's position; `reason` says why in one sentence.
    """

    def __init__(self, reason: str, *, topic: str, partition: int, offset: int) -> None:
        super().__init__(f"{topic}[{partition}]@{offset}: {reason}")
        self.reason = reason
        self.topic = topic
        self.partition = partition
        self.offset = offset


class EncodeError(K2Error):
    """A record does not fit its Avro schema; names the field."""


class IncompatibleSchema(K2Error):
    """A schema cannot read what earlier ones of its subject wrote, or its records do not fit their table."""


class BrokerError(K2Error):
    """Kafka, or its schema registry, cannot be reached or answered with an error."""

    retryable = True


class LogTruncated(BrokerError):
    """The log no longer holds the offsets asked for: retention or a recreated topic took them."""

    retryable = False


class IngestFenced(K2Error):
    """Another ingest of the same venue and shard has started: this one may write nothing any more."""


class CatalogError(K2Error):
    """The Iceberg catalog, or the store of its files, cannot be reached, read or written; nothing was committed."""

    retryable = True


class CommitError(K2Error):
    """A commit to an Iceberg table did not go through as asked."""


class CommitConflict(CommitError):
    """Another writer changed the table first: nothing of this commit landed."""

    retryable = True


class CommitStateUnknown(CommitError):
    """The catalog did not say whether the commit landed: reload and look for the commit id; delete nothing."""

    retryable = True


class MaintenanceError(K2Error):
    """A job on a table did not do what was asked; what it had done until then is complete."""


class Refused(MaintenanceError):
    """The job would do harm, or cannot be done whole, so it was not begun."""


class Overtaken(MaintenanceError):
    """Another job changed what this one was about to change, and this one yielded: it changed nothing."""

    retryable = True


class Interrupted(MaintenanceError):
    """The job was told to stop and did so between two steps: nothing is half done."""

    retryable = True


class ReadViewError(K2Error):
    """A consistent view of snapshot and tail cannot be given."""


class SnapshotNotFound(ReadViewError):
    """The table has no such snapshot."""


class SnapshotExpired(ReadViewError):
    """The snapshot's files are gone."""


class TailGap(ReadViewError):
    """The tail does not reach back to the snapshot, so an answer would be partial; it is refused instead."""

    retryable = True


class StatementError(K2Error):
    """A statement cannot be run as written."""


class InvalidStatement(StatementError):
    """Syntax, binding or type error; carries the engine's own message with the position."""


class TableNotFound(StatementError):
    """A table, view, schema or catalog does not exist."""


class Unsupported(StatementError):
    """The request is understood and is not offered; the message says what is."""


class StatementTimeout(StatementError):
    """The statement ran longer than its limit and was stopped."""

    retryable = True


class StatementCancelled(StatementError):
    """The statement was cancelled by its client or by the server's drain."""


class LimitExceeded(StatementError):
    """The statement would use more memory, rows or bytes than allowed."""


class AccessError(K2Error):
    """Who asks, or what is asked, is not allowed."""


class Unauthenticated(AccessError):
    """No valid credentials came with the call."""


class PermissionDenied(AccessError):
    """The caller may not do this."""


class Unavailable(K2Error):
    """The service cannot answer now: starting, draining or overloaded."""

    retryable = True
