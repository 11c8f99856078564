"""Iceberg and the Kafka tail in, Arrow Flight SQL out."""
