"""bucket: uniform, stable, monotone, and the same as PostgreSQL computes."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.plugin import bucket


@given(st.one_of(st.text(), st.binary()), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_raising_a_threshold_only_moves_keys_in(key: str | bytes, salt: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    place = bucket(key, salt)
    assert 0 <= place < 1
    assert not (place < low) or place < high


def test_it_is_the_first_eight_bytes_of_a_sha256() -> None:
    digest = hashlib.sha256(b"rollout-1\x00user-7").digest()
    assert abs(bucket("user-7", "rollout-1") - int.from_bytes(digest[:8], "big") / 2**64) < 1e-15


def test_it_is_uniform_over_keys_and_salts() -> None:
    places = [bucket(f"user-{n}", "salt") for n in range(20_000)]
    below = sum(place < 0.1 for place in places)
    assert abs(below - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
