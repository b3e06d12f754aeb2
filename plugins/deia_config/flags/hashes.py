"""The hash functions behind every generation of flagd's bucketing, in plain Python.

MurmurHash3 x86-32 (Austin Appleby's SMHasher, public domain), XXH3-64 (the xxHash specification, seed 0) and
deterministic CBOR (RFC 8949 section 4.2.1). A flag's rollout must
put a key into the same bucket everywhere and for ever: the one optional library (mmh3) computes the same, faster.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_M32 = 0xFFFFFFFF
_M64 = 0xFFFFFFFFFFFFFFFF


def _mixed(h: int, words: tuple[int, ...]) -> int:
    for k in words:
        k = (k * 0xCC9E2D51) & _M32
        h ^= (((k << 15) | (k >> 17)) * 0x1B873593) & _M32
        h = (((h << 13) | (h >> 19)) * 5 + 0xE6546B64) & _M32
    return h


def _finished(h: int, tail: bytes, size: int) -> int:
    if tail:
        k = (int.from_bytes(tail, "little") * 0xCC9E2D51) & _M32
        h ^= (((k << 15) | (k >> 17)) * 0x1B873593) & _M32
    h ^= size
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _M32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _M32
    return h ^ (h >> 16)


def plain_murmur3(data: bytes) -> int:
    """MurmurHash3 x86-32 with seed 0, unsigned."""
    blocks = len(data) // 4
    return _finished(_mixed(0, struct.unpack_from(f"<{blocks}I", data)), data[blocks * 4 :], len(data))


def plain_murmur3_after(prefix: bytes) -> Callable[[bytes], int]:
    """A function that hashes `prefix` and what it is given: the prefix (a flag's key) is mixed once."""
    blocks = len(prefix) // 4
    state = _mixed(0, struct.unpack_from(f"<{blocks}I", prefix))
    rest, known = prefix[blocks * 4 :], blocks * 4

    def hashed(data: bytes) -> int:
        data = rest + data
        count = len(data) // 4
        return _finished(_mixed(state, struct.unpack_from(f"<{count}I", data)), data[count * 4 :], known + len(data))

    return hashed


murmur3_32 = plain_murmur3
murmur3_after = plain_murmur3_after
try:
    from mmh3 import hash as _c_murmur3  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    pass
else:  # the same function in C, where it is installed: 0.2 instead of 2 µs for a key that was not seen before

    def _murmur3(data: bytes) -> int:
        return int(_c_murmur3(data, 0, False))

    def _murmur3_after(prefix: bytes) -> Callable[[bytes], int]:
        return lambda data: int(_c_murmur3(prefix + data, 0, False))

    murmur3_32, murmur3_after = _murmur3, _murmur3_after


@lru_cache(maxsize=65_536)
def murmur3_text(text: str) -> int:
    """MurmurHash3 of a text's UTF-8 bytes. Cached: the same actors come again."""
    return murmur3_32(text.encode("utf-8", "surrogatepass"))


_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8"
    "fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb17"
    "0ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64_1, _P64_2, _P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P64_4, _P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product & _M64) ^ (product >> 64)


def _avalanche(h: int) -> int:
    h ^= h >> 37
    h = (h * 0x165667919E3779F9) & _M64
    return h ^ (h >> 32)


def _avalanche64(h: int) -> int:
    h ^= h >> 33
    h = (h * _P64_2) & _M64
    h ^= h >> 29
    h = (h * _P64_3) & _M64
    return h ^ (h >> 32)


def _mix16(data: bytes, at: int, secret: int) -> int:
    return _fold(_u64(data, at) ^ _u64(_SECRET, secret), _u64(data, at + 8) ^ _u64(_SECRET, secret + 8))


def xxh3_64(data: bytes) -> int:
    """XXH3, 64 bits, seed 0."""
    n = len(data)
    if n > 240:
        return _xxh3_long(data)
    if n > 128:
        acc = (n * _P64_1) & _M64
        for i in range(8):
            acc += _mix16(data, 16 * i, 16 * i)
        acc = _avalanche(acc & _M64)
        for i in range(8, n // 16):
            acc += _mix16(data, 16 * i, 16 * (i - 8) + 3)
        acc += _mix16(data, n - 16, 136 - 17)
        return _avalanche(acc & _M64)
    if n > 16:
        acc = (n * _P64_1) & _M64
        for i in reversed(range((n - 1) // 32 + 1)):
            acc += _mix16(data, 16 * i, 32 * i)
            acc += _mix16(data, n - 16 * (i + 1), 32 * i + 16)
        return _avalanche(acc & _M64)
    if n > 8:
        low = _u64(data, 0) ^ (_u64(_SECRET, 24) ^ _u64(_SECRET, 32))
        high = _u64(data, n - 8) ^ (_u64(_SECRET, 40) ^ _u64(_SECRET, 48))
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return _avalanche((n + swapped + high + _fold(low, high)) & _M64)
    if n >= 4:
        h = ((_u32(data, n - 4)) + (_u32(data, 0) << 32)) ^ (_u64(_SECRET, 8) ^ _u64(_SECRET, 16))
        h ^= (((h << 49) | (h >> 15)) ^ ((h << 24) | (h >> 40))) & _M64
        h = (h * 0x9FB21C651E98DF25) & _M64
        h ^= (h >> 35) + n
        h = (h * 0x9FB21C651E98DF25) & _M64
        return h ^ (h >> 28)
    if n:
        combined = (data[0] << 16) | (data[n >> 1] << 24) | data[n - 1] | (n << 8)
        return _avalanche64(combined ^ (_u32(_SECRET, 0) ^ _u32(_SECRET, 4)))
    return _avalanche64(_u64(_SECRET, 56) ^ _u64(_SECRET, 64))


def _xxh3_long(data: bytes) -> int:
    acc = [_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1]
    n = len(data)
    stripes_per_block = (len(_SECRET) - 64) // 8
    block = 64 * stripes_per_block
    blocks = (n - 1) // block

    def accumulate(at: int, secret: int) -> None:
        for i in range(8):
            value = _u64(data, at + 8 * i)
            keyed = value ^ _u64(_SECRET, secret + 8 * i)
            acc[i ^ 1] = (acc[i ^ 1] + value) & _M64
            acc[i] = (acc[i] + (keyed & _M32) * (keyed >> 32)) & _M64

    for b in range(blocks):
        for s in range(stripes_per_block):
            accumulate(b * block + 64 * s, 8 * s)
        for i in range(8):
            a = acc[i]
            a ^= a >> 47
            a ^= _u64(_SECRET, len(_SECRET) - 64 + 8 * i)
            acc[i] = (a * _P32_1) & _M64
    for s in range((n - 1 - block * blocks) // 64):
        accumulate(blocks * block + 64 * s, 8 * s)
    accumulate(n - 64, len(_SECRET) - 64 - 7)
    result = (n * _P64_1) & _M64
    for i in range(4):
        left = acc[2 * i] ^ _u64(_SECRET, 11 + 16 * i)
        right = acc[2 * i + 1] ^ _u64(_SECRET, 11 + 16 * i + 8)
        result += _fold(left, right)
    return _avalanche(result & _M64)


def cbor(value: Any) -> bytes:
    """Deterministic CBOR: whole floats as integers, other floats in the shortest form, keys sorted.

    Raises ValueError for a value that JSON does not have.
    """
    parts: list[bytes] = []
    _cbor(value, parts)
    return b"".join(parts)


def _head(major: int, value: int) -> bytes:
    top = major << 5
    if value < 24:
        return bytes((top | value,))
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << (8 * size):
            return bytes((top | code,)) + value.to_bytes(size, "big")
    raise ValueError("a number beyond 64 bits")


def _cbor(value: Any, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"\xf6")
    elif isinstance(value, bool):
        parts.append(b"\xf5" if value else b"\xf4")
    elif isinstance(value, int):
        if -(1 << 63) <= value < 1 << 64:
            parts.append(_head(0, value) if value >= 0 else _head(1, -1 - value))
        else:
            _cbor_float(float(value), parts)
    elif isinstance(value, float):
        if value.is_integer() and -(2.0**63) <= value < 2.0**64:
            _cbor(int(value), parts)
        else:
            _cbor_float(value, parts)
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        parts += (_head(3, len(text)), text)
    elif isinstance(value, (list, tuple)):
        parts.append(_head(4, len(value)))
        for item in value:
            _cbor(item, parts)
    elif isinstance(value, dict):
        parts.append(_head(5, len(value)))
        for key, item in sorted(((cbor(str(key)), item) for key, item in value.items()), key=lambda pair: pair[0]):
            parts.append(key)
            _cbor(item, parts)
    else:
        raise ValueError(f"a {type(value).__name__} has no place in JSON")


def _cbor_float(value: float, parts: list[bytes]) -> None:
    if math.isnan(value):
        parts.append(b"\xf9\x7e\x00")
        return
    for code, layout in ((b"\xf9", ">e"), (b"\xfa", ">f"), (b"\xfb", ">d")):
        try:
            packed = struct.pack(layout, value)
        except OverflowError:
            continue
        if struct.unpack(layout, packed)[0] == value:
            parts.append(code + packed)
            return
