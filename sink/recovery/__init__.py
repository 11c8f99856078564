"""What brings a lake back: backups, their restoration, and a catalog made again from the warehouse."""
