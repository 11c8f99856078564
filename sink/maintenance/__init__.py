"""Upkeep of the tables: what runs beside the writers and the readers, and takes no row from either."""
