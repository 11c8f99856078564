"""Snapshots, the tail, and the join of both: one exact cut for each query."""
