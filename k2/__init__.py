"""The `k2` command: every part of K2 by itself, or all of them under one roof."""
