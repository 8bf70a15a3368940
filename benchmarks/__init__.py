"""Studies: each one prints a table and, with --json, the same as data."""
