"""Who may come in: credentials of every kind, and the principal that each of them stands for."""
