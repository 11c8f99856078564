"""Exchanges in, Kafka out: each trade and quote once, whatever the exchange repeats."""
