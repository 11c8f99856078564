"""`k2 shell`: SQL at a prompt. `statements` and `completion` are pure, `shell` runs what was typed, `prompt` asks."""
