"""Topics from their beginning to the end that they have now: for whoever has to know all that is in them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from common.errors import BrokerError
from common.log import ConsumerBatch, KafkaLog, LogReader, TopicInfo
from common.settings import KafkaSettings

_MESSAGES_PER_POLL = 5_000
#: The log is taken to be out of reach when nothing new of it, and no end, was seen for so many request timeouts.
_SILENT_TIMEOUTS = 3


def read_whole(reader: LogReader, kafka: KafkaSettings, topics: Iterable[TopicInfo]) -> Iterator[list[ConsumerBatch]]:
    """What the topics hold, from the first record that retention has left of each partition. Blocking.

    Raises BrokerError, also when the broker goes silent before the end.
    """
    wanted = [info for info in topics if info.partitions]
    infos = {info.topic_id: info.topic for info in wanted}
    if not infos:
        return
    reader.assign(KafkaLog(kafka).start_offsets(wanted), infos)
    silent_s_max = _SILENT_TIMEOUTS * kafka.request_timeout_ms / 1000
    heard_s = time.monotonic()
    while not reader.at_end():
        batches = reader.poll(_MESSAGES_PER_POLL, 0.1)
        if batches:
            yield batches
            heard_s = time.monotonic()
        elif time.monotonic() - heard_s > silent_s_max:
            raise BrokerError(
                f"the broker {kafka.bootstrap_servers} did not let {min(infos.values())} be read to its end within "
                f"{silent_s_max:.0f} s; check the broker and try again"
            )
