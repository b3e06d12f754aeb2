"""The exposition text, read back by a strict reader of the format."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.metrics.core import Metrics
from deia_hardening.metrics.prometheus import CONTENT_TYPE, number, render

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\.)*)",?')


def read(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    samples: dict[Any, float] = {}
    for line in text.decode().split("\n")[:-1]:
        if line.startswith(("# HELP ", "# TYPE ")):
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        labels, rest = [], match[2] or ""
        while rest:
            label = _LABEL.match(rest)
            assert label, rest
            value = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), label[2])
            labels.append((label[1], value))
            rest = rest[label.end() :]
        key = (match[1], tuple(labels))
        assert key not in samples, key
        samples[key] = float(match[3].replace("Inf", "inf"))
    return samples


def test_each_kind_is_read_back():
    metrics = Metrics()
    metrics.counter("requests", "Requests.").inc(3)
    metrics.gauge("limit", "The limit.").set(1.5)
    metrics.counters("answers", "By status.", ("status",)).child("200").inc()
    histogram = metrics.histogram("latency", "Seconds.", (0.1, 1.0))
    for value in (0.05, 0.5, 0.5, 7):
        histogram.observe(value)
    assert read(render(metrics)) == {
        ("deia_requests_total", ()): 3,
        ("deia_limit", ()): 1.5,
        ("deia_answers_total", (("status", "200"),)): 1,
        ("deia_latency_bucket", (("le", "0.1"),)): 1,
        ("deia_latency_bucket", (("le", "1"),)): 3,
        ("deia_latency_bucket", (("le", "+Inf"),)): 4,
        ("deia_latency_sum", ()): 8.05,
        ("deia_latency_count", ()): 4,
    }
    assert "0.0.4" in CONTENT_TYPE


def test_several_apps_share_one_family_by_label():
    one, two = Metrics(), Metrics()
    one.counter("requests", "Requests.").inc()
    two.counter("requests", "Requests.").inc(2)
    text = render({"a": one, "b": two})
    assert text.count(b"# TYPE deia_requests_total counter") == 1
    assert read(text) == {
        ("deia_requests_total", (("app", "a"),)): 1,
        ("deia_requests_total", (("app", "b"),)): 2,
    }


def test_a_gauge_that_raises_hides_no_other():
    metrics = Metrics()
    metrics.gauge("broken", "Broken.", lambda: 1 / 0)
    metrics.gauge("well", "Well.", lambda: 2.0)
    assert read(render(metrics)) == {("deia_well", ()): 2}


@given(name=st.text(max_size=20), doc=st.text(max_size=40), value=st.text(max_size=40))
def test_no_text_forges_a_line(name, doc, value):
    metrics = Metrics()
    metrics.counters(name, doc, ("who",)).child(value).inc()
    samples = read(render(metrics))
    assert len(samples) == 1
    ((_, labels),) = samples
    assert labels == (("who", value.encode("utf-8", "replace").decode()),)


@pytest.mark.parametrize(("value", "text"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (2.0, "2")])
def test_numbers_are_written_as_the_format_wants(value, text):
    assert number(value) == text


def test_nothing_is_nothing():
    assert render(Metrics()) == b""
