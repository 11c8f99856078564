"""Cutting batches to size."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from flight_server.engine.shapes import sliced, without_dictionaries


@given(st.lists(st.text(max_size=40), max_size=60), st.integers(1, 20), st.integers(16, 400))
def test_pieces_are_the_batch_again_and_within_limits(values: list[str], rows_max: int, bytes_max: int) -> None:
    batch = pa.record_batch({"a": pa.array(values, pa.string()), "b": pa.array(range(len(values)), pa.int64())})
    pieces = list(sliced(batch, rows_max=rows_max, bytes_max=bytes_max))
    assert pa.Table.from_batches(pieces, batch.schema) == pa.Table.from_batches([batch])
    for piece in pieces:
        assert piece.num_rows <= rows_max
        assert piece.nbytes <= bytes_max or piece.num_rows == 1


def test_dictionaries_become_their_values_at_any_depth() -> None:
    word = pa.dictionary(pa.uint8(), pa.string())
    schema = pa.schema(
        [
            ("a", word),
            ("b", pa.list_(word)),
            ("c", pa.struct([("x", word), ("y", pa.int8())])),
            ("d", pa.map_(pa.string(), word)),
            ("e", pa.list_(word, 3)),
            ("f", pa.int64()),
        ]
    )
    plain = without_dictionaries(schema)
    assert "dictionary" not in str(plain) and plain.names == schema.names
    assert plain.field("c").type == pa.struct([("x", pa.string()), ("y", pa.int8())])
    assert without_dictionaries(plain) is plain
