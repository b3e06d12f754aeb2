"""Durations, sizes and ratios that carry their unit: `30s`, `16MiB`, `5%`.

Each type is the plain number it stands for (seconds, bytes, a fraction), so reading a setting costs nothing,
and prints as the shortest text that parses back to the same value. Units of size follow IEC 80000-13
(`KiB` = 1024) and SI (`kB`, `KB` = 1000).
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, Self

_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_LONGEST_TEXT = 400  # a float's smallest value needs 330

_SECONDS: dict[str, Fraction] = {
    "w": Fraction(604800),
    "d": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "us": Fraction(1, 1_000_000),
    "ns": Fraction(1, 1_000_000_000),
}
_BYTES: dict[str, Fraction] = {
    "TiB": Fraction(1 << 40),
    "GiB": Fraction(1 << 30),
    "MiB": Fraction(1 << 20),
    "KiB": Fraction(1 << 10),
    "TB": Fraction(10**12),
    "GB": Fraction(10**9),
    "MB": Fraction(10**6),
    "kB": Fraction(10**3),
    "KB": Fraction(10**3),
    "B": Fraction(1),
}
_RATIO: dict[str, Fraction] = {"%": Fraction(1, 100)}

_MISSPELT = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m",
    "minutes": "m", "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "day": "d", "days": "d", "week": "w",
    "weeks": "w", "msec": "ms", "millis": "ms", "µs": "us", "b": "B", "byte": "B", "bytes": "B", "k": "KiB",
    "kb": "KB", "kib": "KiB", "m": "MiB", "mb": "MB", "mib": "MiB", "g": "GiB", "gb": "GB", "gib": "GiB",
    "t": "TiB", "tb": "TB", "tib": "TiB", "percent": "%", "pct": "%",
}  # fmt: skip


class _WithUnit:
    """What the three share: parsing, printing and suggesting."""

    __slots__ = ()
    what: ClassVar[str]
    example: ClassVar[str]
    units: ClassVar[dict[str, Fraction]]
    pattern: ClassVar[str]
    _quantity: ClassVar[re.Pattern[str]]
    _text: ClassVar[re.Pattern[str]]

    @classmethod
    def _parse(cls, text: str) -> Fraction:
        stripped = text.strip()
        if len(stripped) > _LONGEST_TEXT:
            raise ValueError(f"{stripped[:24]!r}… is too long for {cls.what}; write e.g. {cls.example}")
        if not cls._text.fullmatch(stripped):
            suggestion = cls.suggest(stripped)
            hint = f"; did you mean {suggestion}?" if suggestion else ""
            raise ValueError(f"{text!r} is not {cls.what}: write e.g. {cls.example}{hint}")
        if stripped == "0":
            return Fraction(0)
        return sum(
            (Fraction(number) * cls.units[unit] for number, unit in cls._quantity.findall(stripped)),
            Fraction(0),
        )

    @classmethod
    def suggest(cls, wrong: object) -> str:
        """The text that was probably meant by `wrong` (a bare number, a misspelt unit), or ''."""
        if isinstance(wrong, str):
            match = re.fullmatch(rf"({_NUMBER})\s*([A-Za-zµ%]*)", wrong.strip()[:_LONGEST_TEXT])
            if match is None:
                return ""
            number, unit = match.groups()
            if not unit:
                return cls._for_bare(float(number), number)
            if unit not in cls.units:
                lower = unit.lower()
                known = {name.lower(): name for name in reversed(cls.units)}
                unit = _MISSPELT.get(lower, "")
                if unit not in cls.units:
                    unit = known.get(lower, "")
            return f"{number}{unit}" if unit in cls.units else ""
        if isinstance(wrong, (int, float)) and not isinstance(wrong, bool):
            if not math.isfinite(wrong) or wrong < 0:
                return ""
            return cls._for_bare(float(wrong), str(wrong))
        return ""

    @classmethod
    def _for_bare(cls, value: float, text: str) -> str:
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Lets a pydantic model use the type: text with unit, or the number itself from Python."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls._for_pydantic, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _for_pydantic(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str) or (value == 0 and type(value) in (int, float)):
            return cls(value)  # type: ignore[call-arg]
        suggestion = cls.suggest(value)
        raise ValueError(f"write {cls.what} with its unit, e.g. {suggestion or cls.example}")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": cls.pattern}


def _compile(units: dict[str, Fraction], *, compound: bool) -> tuple[str, re.Pattern[str], re.Pattern[str]]:
    names = "|".join(sorted(map(re.escape, units), key=len, reverse=True))
    quantity = rf"{_NUMBER}\s?(?:{names})"
    repeat = "{1,8}" if compound else ""
    pattern = rf"^(?:0|(?:{quantity}){repeat})$"
    return pattern, re.compile(rf"({_NUMBER})\s?({names})"), re.compile(pattern)


def _plain(number: Fraction) -> str | None:
    """The shortest decimal notation of a fraction, if it has a finite one of sane length."""
    denominator = number.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    if denominator != 1:
        return None
    digits = 0
    while (number * 10**digits).denominator != 1:
        digits += 1
        if digits > 12:
            return None
    whole = str(abs(number.numerator * 10**digits // number.denominator)).rjust(digits + 1, "0")
    sign = "-" if number < 0 else ""
    return sign + (f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole)


def _shortest(exact: Fraction, units: dict[str, Fraction], fallback: str) -> str:
    best = ""
    for unit, size in units.items():
        number = _plain(exact / size)
        if number is not None and (not best or len(number) + len(unit) < len(best)):
            best = f"{number}{unit}"
    return best or fallback


class Seconds(_WithUnit, float):
    """A duration in seconds. `Seconds("15m") == 900.0`; units ns us ms s m h d w, also `1h30m`.

    Raises ValueError for other text and for what is not finite.
    """

    what = "a duration"
    example = "30s, 10ms, 15m, 24h or 7d"
    units = _SECONDS
    pattern, _quantity, _text = _compile(_SECONDS, compound=True)

    def __new__(cls, value: float | str = 0) -> Self:
        number = float(cls._parse(value)) if isinstance(value, str) else float(value)
        if not math.isfinite(number):
            raise ValueError(f"{value!r} is not a finite duration")
        return super().__new__(cls, number)

    @classmethod
    def _for_bare(cls, value: float, text: str) -> str:
        return f"{text}s"

    def __str__(self) -> str:
        if float(self) == 0.0:
            return "0s"
        # The float's shortest decimal is what a person wrote; its exact binary value would print 55 digits.
        exact = Fraction(float.__repr__(self))
        text = _shortest(exact, self.units, "")
        return text if text else f"{Decimal(float.__repr__(self)):f}s"

    def __repr__(self) -> str:
        return f"Seconds('{self}')"

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)


class Bytes(_WithUnit, int):
    """A size in bytes. `Bytes("16MiB") == 16777216`; units B KiB MiB GiB TiB and kB (or KB) MB GB TB.

    Raises ValueError for other text and for parts of a byte.
    """

    what = "a size"
    example = "64KiB, 16MiB or 1GB"
    units = _BYTES
    pattern, _quantity, _text = _compile(_BYTES, compound=False)

    def __new__(cls, value: int | str = 0) -> Self:
        if isinstance(value, str):
            exact = cls._parse(value)
            if exact.denominator != 1:
                raise ValueError(f"{value!r} is not a whole number of bytes")
            return super().__new__(cls, exact.numerator)
        if value != int(value):
            raise ValueError(f"{value!r} is not a whole number of bytes")
        return super().__new__(cls, int(value))

    @classmethod
    def _for_bare(cls, value: float, text: str) -> str:
        if value != int(value):
            return f"{text}MiB"
        return str(cls(int(value)))

    def __str__(self) -> str:
        if self == 0:
            return "0B"
        return _shortest(Fraction(int(self)), self.units, f"{int(self)}B")

    def __repr__(self) -> str:
        return f"Bytes('{self}')"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


class Ratio(_WithUnit, float):
    """A part of a whole as a fraction. `Ratio("5%") == 0.05`.

    Raises ValueError for text without `%` and for what is not finite.
    """

    what = "a ratio"
    example = "5%, 0.5% or 100%"
    units = _RATIO
    pattern, _quantity, _text = _compile(_RATIO, compound=False)

    def __new__(cls, value: float | str = 0) -> Self:
        number = float(cls._parse(value)) if isinstance(value, str) else float(value)
        if not math.isfinite(number):
            raise ValueError(f"{value!r} is not a finite ratio")
        return super().__new__(cls, number)

    @classmethod
    def _for_bare(cls, value: float, text: str) -> str:
        if value > 1:
            return f"{text}%"
        return str(cls(value))

    def __str__(self) -> str:
        exact = Fraction(float.__repr__(self)) * 100
        digits = _plain(exact)
        return f"{digits}%" if digits is not None else f"{Decimal(float.__repr__(self)).scaleb(2):f}%"

    def __repr__(self) -> str:
        return f"Ratio('{self}')"

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)
