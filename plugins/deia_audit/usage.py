"""Reads what a model call used from its answer: tokens in and out, and the cost where the service names it.

Pure. Knows OpenAI's chat completions and responses and Anthropic's messages, whole or as server-sent events: their
counts stand at the answer's end, Anthropic's input also at its beginning. Quotes inside of a model's own text are
escaped, so what it says can't be taken for a count.
"""

from __future__ import annotations

_IN = (b'"input_tokens"', b'"prompt_tokens"')
_OUT = (b'"output_tokens"', b'"completion_tokens"')
_COST = (b'"cost"',)
_DIGITS = 15


def usage(first: bytes, last: bytes) -> bytes:
    """Return the members `tokens_in`, `tokens_out` and `cost` that `first` and `last` bytes of an answer tell."""
    parts = []
    for name, keys in ((b"tokens_in", _IN), (b"tokens_out", _OUT), (b"cost", _COST)):
        value = _number(last, keys, fraction=keys is _COST) or _number(first, keys, fraction=keys is _COST)
        if value:
            parts.append(b'"%b":%b' % (name, value))
    return b",".join(parts)


def _number(data: bytes, keys: tuple[bytes, ...], *, fraction: bool) -> bytes:
    """Return the last number behind one of `keys` in `data`, as JSON text, or b"".

    A key with something else behind it is no count: what a caller named its metadata comes back in some answers.
    """
    end = len(data)
    while (at := max((data.rfind(key, 0, end), len(key)) for key in keys))[0] >= 0:
        end = at[0]
        if number := _number_at(data[end + at[1] : end + at[1] + 32], fraction=fraction):
            return number
    return b""


def _number_at(rest: bytes, *, fraction: bool) -> bytes:
    rest = rest.lstrip()
    if not rest.startswith(b":"):
        return b""
    rest = rest[1:].lstrip()
    whole = _digits(rest)
    if not whole or len(whole) > _DIGITS:
        return b""
    number = b"%d" % int(whole)
    rest = rest[len(whole) :]
    if fraction and rest.startswith(b".") and (after := _digits(rest[1:])):
        number += b"." + after
    return number


def _digits(data: bytes) -> bytes:
    length = 0
    while data[length : length + 1].isdigit():
        length += 1
    return data[:length]
