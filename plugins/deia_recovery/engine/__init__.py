"""Durable state on SQLite: one writer thread per process that commits groups, readers that see what it acknowledged."""
