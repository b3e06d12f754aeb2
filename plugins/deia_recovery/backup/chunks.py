"""Chunks: pieces of a backup named by their content, compressed, optionally encrypted.

The same piece is stored once. A name is a hash of the plain content, so whatever is read back under a name is checked
against it: a flipped, cut, swapped or forged chunk is found by opening it.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any

from deia_recovery.backup.keys import KeyRing

_MAGIC = b"DC1"
_RAW, _ZLIB, _ZSTD = 0, 1, 2
_SEALED = 16

zstandard: Any
try:
    zstandard = importlib.import_module("zstandard")
except ImportError:
    zstandard = None

_LEVEL = 3


def pack(plain: bytes, keys: KeyRing) -> tuple[str, bytes]:
    """(name, stored bytes) of a piece of content."""
    name = keys.name(plain)
    kind, body = _RAW, plain
    if zstandard is not None:
        body, kind = zstandard.ZstdCompressor(level=_LEVEL).compress(plain), _ZSTD
    else:
        body, kind = zlib.compress(plain, 6), _ZLIB
    if len(body) >= len(plain):
        kind, body = _RAW, plain
    if keys.encrypt:
        return name, _MAGIC + bytes([kind | _SEALED]) + keys.seal(body, name.encode())
    return name, _MAGIC + bytes([kind]) + body


def unpack(name: str, stored: bytes, keys: KeyRing, *, limit: int = 1 << 30) -> bytes:
    """The content that `name` promises. Raises ValueError when it is anything else."""
    if stored[:3] != _MAGIC or len(stored) < 4:
        raise ValueError("it is not a chunk")
    kind, body = stored[3], stored[4:]
    if kind & _SEALED:
        body = keys.open(body, name.encode())
        kind &= ~_SEALED
    plain = _decompress(kind, body, limit)
    if _name_of(plain, stored[3], keys) != name:
        raise ValueError("its content is not what its name says")
    return plain


def _name_of(plain: bytes, flags: int, keys: KeyRing) -> str:
    if bool(flags & _SEALED) == keys.encrypt:
        return keys.name(plain)
    return KeyRing(keys.master, encrypt=bool(flags & _SEALED)).name(plain)


def _decompress(kind: int, body: bytes, limit: int) -> bytes:
    try:
        if kind == _RAW:
            return body
        if kind == _ZLIB:
            stream = zlib.decompressobj()
            plain = stream.decompress(body, limit)
            if stream.unconsumed_tail or not stream.eof:
                raise ValueError("it is cut, or larger than a chunk may be")
            return plain
        if kind == _ZSTD:
            return _zstd(body, limit)
    except zlib.error as error:
        raise ValueError(f"it does not decompress: {error}") from error
    raise ValueError(f"it is packed in an unknown way ({kind})")


def _zstd(body: bytes, limit: int) -> bytes:
    if zstandard is None:
        raise ValueError("it is packed with zstd: install deia-hardening[zstd]")
    try:
        parameters: Any = zstandard.get_frame_parameters(body)
        if parameters.content_size > limit:
            raise ValueError("it is larger than a chunk may be")
        return bytes(zstandard.ZstdDecompressor().decompress(body, max_output_size=limit))
    except zstandard.ZstdError as error:
        raise ValueError(f"it does not decompress: {error}") from error
