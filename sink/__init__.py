"""Kafka in, Iceberg out, each record once. `SinkService` runs it, `SinkWorker` is its loop, `IcebergTable` the fence."""
