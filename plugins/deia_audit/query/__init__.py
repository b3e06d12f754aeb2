"""Finds records again: the grammar of `GET /api/audit/logs`, an index per segment, and the search over both."""
