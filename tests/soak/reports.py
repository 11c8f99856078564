"""What the soaks ask at their end: is the whole log in the tables, do the tables verify?"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from common.datasets import DATASETS
from common.errors import K2Error
from common.log import KafkaLog, KafkaLogReader, TopicInfo
from common.offsets import KafkaPartition, PartitionOffsets
from common.settings import KafkaSettings
from sink.table import IcebergTable
from tests.soak.parts import Parts

_DRAIN_S_MAX = 180.0
_MESSAGES_PER_POLL = 1_000


def drained(parts: Parts) -> list[str]:
    """Wait until the tables have taken in all that the log holds; what they have not."""
    log = KafkaLog(parts.kafka)
    deadline_s = time.monotonic() + _DRAIN_S_MAX
    for dataset in DATASETS.values():
        topics = log.topics(dataset.topic_pattern)
        if not topics:
            continue
        table = IcebergTable.open(parts.lake, dataset)
        while has_messages_behind(table.committed_offsets(), parts.kafka, log, topics):
            if time.monotonic() > deadline_s:
                return [f"{dataset.table} had not taken in the whole log {_DRAIN_S_MAX:.0f} s after the end"]
            time.sleep(0.5)
    return []


def has_messages_behind(
    taken: PartitionOffsets, kafka: KafkaSettings, log: KafkaLog, topics: Mapping[str, TopicInfo]
) -> bool:
    """Does a reader of committed messages find any behind these offsets?

    That is not the same as offsets that lie behind the log's end: the log may end with what no reader sees, the marker
    of a transaction or one that was aborted, and a sink that has no row to commit commits no offset either.
    """
    cluster_id = log.cluster_id()
    partitions = [
        KafkaPartition(cluster_id, info.topic_id, number)
        for info in topics.values()
        for number in range(info.partitions)
    ]
    with contextlib.closing(KafkaLogReader(kafka, client_id="k2-soak")) as reader:
        starts = {partition: taken.next_offset(partition) for partition in partitions}
        reader.assign(starts, {info.topic_id: info.topic for info in topics.values()})
        deadline_s = time.monotonic() + _DRAIN_S_MAX
        while not reader.at_end():
            if reader.poll(_MESSAGES_PER_POLL, 0.1):
                return True
            if time.monotonic() > deadline_s:
                raise K2Error(f"the broker {kafka.bootstrap_servers} did not say where its log ends")
    return False


def verified(parts: Parts) -> list[dict[str, Any]]:
    """The reports of `k2 tables verify`."""
    command = [sys.executable, "-m", "k2.cli", "tables", "verify", "--deep", "--json"]
    done = subprocess.run(
        [*command, "--data-dir", str(parts.lake.data_dir)], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise K2Error(f"k2 tables verify ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def say(line: str) -> None:
    sys.stderr.write(f"soak: {line}\n")
    sys.stderr.flush()
