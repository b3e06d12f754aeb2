"""Bots that can stand in for each other: balance, ejection, probes, slow start, quotas."""
