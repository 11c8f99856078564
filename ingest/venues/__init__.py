"""One pure session per venue: frames in, events out. No socket, no clock."""
