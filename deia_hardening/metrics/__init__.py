"""Counters, gauges and histograms, and their exports."""

from deia_hardening.metrics.core import Counter, Family, Gauge, Histogram, Metrics

__all__ = ["Counter", "Family", "Gauge", "Histogram", "Metrics"]
