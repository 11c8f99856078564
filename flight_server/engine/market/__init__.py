"""Market functions in SQL, pure: what each takes, and the SELECT over K2's own tables that it stands for."""
