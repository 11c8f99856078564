"""The Avro schemas: the one source of every record's shape. `arrow.py` derives the Arrow schemas from them."""
