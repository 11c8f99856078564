"""Kafka in, Iceberg out, each record once. `SinkService` runs it, `SinkWorker` the loop, `IcebergTable` the fence."""
