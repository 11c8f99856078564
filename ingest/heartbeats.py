"""Signs of life of the ingest that writes, in a topic of their own: how a standby knows that it is its turn.

A heartbeat goes the way of every record, through the loop and a transaction, so that one that stalls anywhere on it is
silent. It only says when to take over. That a predecessor which still lives writes nothing is the fence's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterable
from typing import Final

from common.clock import Clock
from common.errors import BrokerError
from common.log import ConsumerBatch, KafkaLog, KafkaLogReader, TopicInfo
from common.settings import KafkaSettings
from common.telemetry import get_logger

_POLL_S: Final = 0.1
_MESSAGES_PER_POLL: Final = 1_000
#: How long a broker that does not answer is left alone.
_AGAIN_S: Final = 0.5


def heartbeat_topic(*, asset_class: str, exchange: str) -> str:
    """The topic's name, `ops.crypto.heartbeats.binance`."""
    return f"ops.{asset_class}.heartbeats.{exchange}"


def heartbeat(shard: str, now_us: int) -> bytes:
    """The message: which ingest, where, and when."""
    about = {"shard": shard, "host": socket.gethostname(), "pid": os.getpid(), "time_us": now_us}
    return json.dumps(about, separators=(",", ":")).encode()


def is_of(message: bytes | None, shard: str) -> bool:
    """Whether this is a heartbeat of the shard's ingest; what is no heartbeat is of none."""
    try:
        about = json.loads(message or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(about, dict) and about.get("shard") == shard


class HeartbeatListener:
    """Tells when the writing ingest of a shard has been silent for too long. One thread; `close` it in the end.

    Silence of the broker is not taken for silence of the ingest.
    """

    def __init__(
        self, kafka: KafkaSettings, topic: TopicInfo, shard: str, *, silent_s_max: float, clock: Clock
    ) -> None:
        self._log = KafkaLog(kafka)
        self._topic = topic
        self._shard = shard
        self._silent_s_max = silent_s_max
        self._clock = clock
        self._logger = get_logger("ingest")
        self._reader = KafkaLogReader(kafka, client_id="k2-ingest-standby")
        self._heard_s = clock.monotonic_s()
        self._begun = False

    def listen(self) -> bool:
        """Listen for a moment; True once nothing was heard for so long, and the broker says that there is no more."""
        try:
            if not self._begun:
                ends = self._log.end_offsets([self._topic])
                self._reader.assign(ends, {self._topic.topic_id: self._topic.topic})
                self._begun = True
            self._hear(self._reader.poll(_MESSAGES_PER_POLL, _POLL_S))
            if self._clock.monotonic_s() - self._heard_s < self._silent_s_max:
                return False
            if self._reader.positions().covers(self._log.end_offsets([self._topic])):
                return True
        except BrokerError as error:
            self._logger.warning("the standby cannot read heartbeats", reason=error.message)
            self._heard_s = self._clock.monotonic_s()
            threading.Event().wait(_AGAIN_S)
        return False

    def close(self) -> None:
        with contextlib.suppress(BrokerError):
            self._reader.close()

    def _hear(self, batches: Iterable[ConsumerBatch]) -> None:
        if any(is_of(value, self._shard) for batch in batches for value in batch.values):
            self._heard_s = self._clock.monotonic_s()
