"""Avro to Arrow: the decoder of sink and tail, one core, batches of 5,000 messages, beside fastavro one by one."""

from __future__ import annotations

import io
import json
import os
import time

import fastavro

from common.codec import HEADER_BYTES, Decoder
from common.datasets import TRADES
from common.log import ConsumerBatch
from common.registry import EmbeddedRegistry
from common.schemas.arrow import avro_schema_text
from tests.performance.figures import Figure
from tests.performance.market_data import messages

_BATCH = 5_000


def run(scale: float) -> list[Figure]:
    values = messages(_BATCH)
    batch = ConsumerBatch("t", "c", "bench-topic-id", [0] * _BATCH, list(range(_BATCH)), list(values))
    decoder = Decoder(TRADES, EmbeddedRegistry())
    turns = max(10, int(200 * scale))
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        decoder.decode(batch)
        begin_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(turns):
            decoder.decode(batch)
        taken_s, used_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    schema = fastavro.parse_schema(json.loads(avro_schema_text("trade")))
    begin_s = time.perf_counter()
    for value in values:
        fastavro.schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), schema, None)
    oracle = _BATCH / (time.perf_counter() - begin_s)
    rate = turns * _BATCH / taken_s
    size = sum(map(len, values)) / _BATCH
    return [
        Figure("decode", "Avro to Arrow", rate, "messages/s", f"fastavro one by one, without Arrow: {oracle:,.0f}"),
        Figure("decode", "per CPU second", turns * _BATCH / used_s, "messages/s", f"{size:.0f} bytes a message"),
    ]
