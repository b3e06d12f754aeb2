"""JsonLogic's values as JavaScript sees them, and the operators that need no more than their arguments.

Source: jsonlogic.com/operations.html. Nothing here raises for any JSON value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def truthy(value: Any) -> bool:
    """JsonLogic's truth: as JavaScript's, but an empty list is false (and an empty map is true)."""
    if value is True or value is False:
        return value
    if isinstance(value, dict):
        return True
    if isinstance(value, float) and math.isnan(value):
        return False
    return bool(value)


def number(value: Any) -> float:
    """JavaScript's Number(): NaN for what is none."""
    if value is None or value is False:
        return 0
    if value is True:
        return 1
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return 0
        try:
            return float(text) if not text.lower().lstrip("+-").startswith(("nan", "inf")) else math.nan
        except ValueError:
            try:
                return int(text, 0) if text[:2].lower() in ("0x", "0o", "0b") else math.nan
            except ValueError:
                return math.nan
    if isinstance(value, list):
        return number(value[0]) if len(value) == 1 else math.nan if value else 0
    return math.nan


def text(value: Any) -> str:
    """JavaScript's String(), as `cat` uses it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e21:
            return str(int(value))
        return repr(value)
    if isinstance(value, list):
        return ",".join(text(item) for item in value)
    if isinstance(value, dict):
        return "[object Object]"
    return str(value)


def soft_equal(a: Any, b: Any) -> bool:
    """`==` with JavaScript's coercion."""
    if isinstance(a, str) and isinstance(b, str):
        return a == b
    if a is None or b is None:
        return a is b
    if isinstance(a, (list, dict)) and isinstance(b, (list, dict)):
        return bool(a == b)
    if isinstance(a, (list, dict)) or isinstance(b, (list, dict)):
        return text(a) == text(b)
    return number(a) == number(b)


def strict_equal(a: Any, b: Any) -> bool:
    """`===`: the same kind of value, and equal."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    return type(a) is type(b) and bool(a == b)


def _less(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return a < b
    return number(a) < number(b)


def _less_equal(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return a <= b
    return number(a) <= number(b)


def _between(compare: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def between(a: Any = None, b: Any = None, *rest: Any) -> bool:
        return compare(a, b) and (not rest or compare(b, rest[0]))

    return between


def _contains(item: Any = None, within: Any = None, *_: Any) -> bool:
    if isinstance(within, str):
        return text(item) in within if item is not None else False
    if isinstance(within, list):
        return any(strict_equal(item, each) for each in within)
    return False


def _tidy(value: float) -> float | int | None:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
    return value


def _add(*values: Any) -> Any:
    return _tidy(sum((number(value) for value in values), 0))


def _subtract(a: Any = None, *rest: Any) -> Any:
    return _tidy(number(a) - number(rest[0]) if rest else -number(a))


def _multiply(*values: Any) -> Any:
    return _tidy(math.prod(float(number(value)) for value in values))


def _divide(a: Any = None, b: Any = None, *_: Any) -> Any:
    divisor = number(b)
    return _tidy(number(a) / divisor) if divisor else None


def _modulo(a: Any = None, b: Any = None, *_: Any) -> Any:
    left, right = number(a), number(b)
    if not right or not math.isfinite(left) or math.isnan(right):
        return None
    return _tidy(math.fmod(left, right))


def _extreme(pick: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*values: Any) -> Any:
        items = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        return _tidy(pick(number(item) for item in items)) if items else None

    return extreme


def _merge(*values: Any) -> list[Any]:
    merged: list[Any] = []
    for value in values:
        merged.extend(value) if isinstance(value, list) else merged.append(value)
    return merged


def _substring(value: Any = None, start: Any = 0, length: Any = None, *_: Any) -> str:
    whole = text(value)
    try:
        begin = int(number(start))
        if length is None:
            return whole[begin:]
        count = int(number(length))
    except (ValueError, OverflowError):
        return ""
    tail = whole[begin:]
    return tail[:count]


PLAIN: dict[str, Callable[..., Any]] = {
    "==": lambda a=None, b=None, *_: soft_equal(a, b),
    "!=": lambda a=None, b=None, *_: not soft_equal(a, b),
    "===": lambda a=None, b=None, *_: strict_equal(a, b),
    "!==": lambda a=None, b=None, *_: not strict_equal(a, b),
    "<": _between(_less),
    "<=": _between(_less_equal),
    ">": lambda a=None, b=None, *_: _less(b, a),
    ">=": lambda a=None, b=None, *_: _less_equal(b, a),
    "!": lambda a=None, *_: not truthy(a),
    "!!": lambda a=None, *_: truthy(a),
    "in": _contains,
    "cat": lambda *values: "".join([text(value) for value in values]),
    "substr": _substring,
    "+": _add,
    "-": _subtract,
    "*": _multiply,
    "/": _divide,
    "%": _modulo,
    "min": _extreme(min),
    "max": _extreme(max),
    "merge": _merge,
}
