"""Values as JSON bytes and back, typed. No pickle: what a type does not say can't be stored.

msgspec reads and writes builtins, dataclasses, attrs classes, TypedDicts and Structs; pydantic models do it
themselves; anything else goes through cattrs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import msgspec


@attrs.frozen
class Codec:
    """How one type becomes bytes and comes back. `decode` raises for bytes that do not fit."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


@functools.lru_cache(maxsize=512)
def codec_for(kind: Any) -> Codec:
    """The codec of a type. Raises TypeError for one that nobody here can read."""
    if hasattr(kind, "model_validate_json"):

        def dump(value: Any) -> bytes:
            return value.model_dump_json().encode()  # type: ignore[no-any-return]

        return Codec(dump, kind.model_validate_json)
    try:
        decoder = msgspec.json.Decoder(kind)
    except TypeError:
        return _cattrs(kind)
    return Codec(_encode, decoder.decode)


_encode = msgspec.json.Encoder().encode


def _cattrs(kind: Any) -> Codec:
    from cattrs.preconf.json import make_converter

    converter = make_converter()
    converter.get_structure_hook(kind)

    def dump(value: Any) -> bytes:
        return converter.dumps(value, unstructure_as=kind).encode()

    def load(data: bytes) -> Any:
        return converter.loads(data, kind)

    return Codec(dump, load)
