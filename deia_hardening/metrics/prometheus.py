"""Metrics as text for Prometheus to scrape: exposition format 0.0.4.

A scrape reads plain numbers, nothing is locked while a request counts. Names are made valid, label values
and help texts escaped, so nothing that reached a label can forge a line. Source:
prometheus.io/docs/instrumenting/ exposition_formats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from deia_hardening.metrics.core import Counter, Family, Gauge, Histogram, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TYPES: dict[type, str] = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
_NOT_NAME = re.compile(r"[^a-zA-Z0-9_:]")
_NOT_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": " "})


def render(apps: Mapping[str, Metrics] | Metrics, *, prefix: str = "deia_") -> bytes:
    """The metrics of one app, or of several by name (which becomes the label `app`), as Prometheus reads
    them.

    A gauge whose function raises is left out, so that one broken reading does not hide the others. Any
    thread.
    """
    named: dict[str, Metrics] = {"": apps} if isinstance(apps, Metrics) else dict(apps)
    found: dict[str, list[tuple[str, Family]]] = {}
    for app, metrics in named.items():
        for family in metrics:
            found.setdefault(_full_name(prefix, family), []).append((app, family))
    lines: list[str] = []
    for name in sorted(found):
        families = found[name]
        kind = families[0][1].kind
        lines.append(f"# HELP {name} {families[0][1].doc.translate(_HELP_ESCAPES)}")
        lines.append(f"# TYPE {name} {_TYPES[kind]}")
        for app, family in families:
            if family.kind is kind:  # two apps that disagree about a name: the first one's meaning holds
                lines += _family(name, app, family)
    text = "\n".join(lines) + "\n" if lines else ""
    return text.encode("utf-8", "replace")


def _full_name(prefix: str, family: Family) -> str:
    name = _NOT_NAME.sub("_", prefix + family.name)
    if name[:1].isdigit():
        name = "_" + name
    if family.kind is Counter and not name.endswith("_total"):
        name += "_total"
    return name


def _family(name: str, app: str, family: Family) -> Iterable[str]:
    for values, metric in family.items():
        pairs = [("app", app)] if app else []
        pairs += zip(family.labels, values, strict=True)
        labels = ",".join(f'{_NOT_LABEL.sub("_", label)}="{value.translate(_ESCAPES)}"' for label, value in pairs)
        if isinstance(metric, Histogram):
            yield from _histogram(name, labels, metric)
            continue
        try:
            value = metric.value
        except Exception:  # noqa: S112 - said in render()
            continue
        yield f"{name}{{{labels}}} {number(value)}" if labels else f"{name} {number(value)}"


def _histogram(name: str, labels: str, metric: Histogram) -> Iterable[str]:
    before = labels + "," if labels else ""
    total = 0
    counts = list(metric.counts)  # one copy: what arrives meanwhile is in the next scrape
    for bound, count in zip((*metric.bounds, math.inf), counts, strict=True):
        total += count
        yield f'{name}_bucket{{{before}le="{number(bound)}"}} {total}'
    wrapped = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{wrapped} {number(metric.total)}"
    yield f"{name}_count{wrapped} {total}"


def number(value: float) -> str:
    """A number as the format writes it: `+Inf`, `NaN`, whole ones without a fraction."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
