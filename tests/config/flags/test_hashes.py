from __future__ import annotations

import pytest

from deia_config.flags.hashes import cbor, murmur3_32, murmur3_after, plain_murmur3, plain_murmur3_after, xxh3_64


@pytest.mark.parametrize(
    ("data", "hashed"),
    [(b"", 0), (b"a", 0x3C2569B2), (b"test", 0xBA6BD213), (b"Hello, world!", 0xC0363E43), (b"abc", 0xB3DD93FA)],
)
def test_murmur3_gives_the_published_values(data: bytes, hashed: int) -> None:
    assert murmur3_32(data) == plain_murmur3(data) == hashed


def test_a_prefix_that_was_mixed_before_gives_the_same_hash() -> None:
    for length in range(40):
        data = bytes((31 * i + length) % 256 for i in range(length))
        for cut in range(length + 1):
            assert murmur3_after(data[:cut])(data[cut:]) == murmur3_32(data)
            assert plain_murmur3_after(data[:cut])(data[cut:]) == murmur3_32(data)


def test_murmur3_agrees_with_the_c_library_at_every_length() -> None:
    mmh3 = pytest.importorskip("mmh3")
    for length in range(300):
        data = bytes((7 * i + length) % 256 for i in range(length))
        assert plain_murmur3(data) == mmh3.hash(data, 0, False)


def test_xxh3_agrees_with_the_reference_library_at_every_length_class() -> None:
    xxhash = pytest.importorskip("xxhash")
    for length in [*range(300), 511, 512, 1023, 1024, 1025, 1088, 4096]:
        data = bytes((7 * i + length) % 256 for i in range(length))
        assert xxh3_64(data) == xxhash.xxh3_64_intdigest(data), length


def test_xxh3_gives_the_published_value_of_nothing() -> None:
    assert xxh3_64(b"") == 0x2D06800538D394C2


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"), (23, "17"), (24, "1818"), (1000000, "1a000f4240"), (-1, "20"), (-1000, "3903e7"), (1.0, "01"),
        (-0.0, "00"), (1.5, "f93e00"), (100000.5, "fa47c35040"), (1.1, "fb3ff199999999999a"), (65504.5, "fa477fe080"),
        (True, "f5"), (False, "f4"), (None, "f6"), ("a", "6161"), ("ü", "62c3bc"), ([1, [2]], "82018102"),
        ({"b": 1, "a": 2}, "a2616102616201"), ({"aa": 1, "b": 2}, "a261620262616101"),
        (18446744073709551615, "1bffffffffffffffff"),
        (9.3e18, "1b81103cb9fb220000"), (2.0**64, "fa5f800000"), (2**64, "fa5f800000"), (1e300, "fb7e37e43c8800759c"),
    ],
)  # fmt: skip
def test_cbor_is_deterministic(value: object, encoded: str) -> None:
    assert cbor(value).hex() == encoded
