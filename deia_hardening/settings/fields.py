"""`setting()`: one typed field of a Settings class, with its documentation, bounds and who may change it.

Everything that validates, documents or hides a setting (structuring, JSON Schema, redaction, run-time
overrides) reads the same `FieldSpec`, so a field is described once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import attrs

_KEY = "deia_hardening.setting"


@attrs.frozen
class FieldSpec:
    """What is known about a setting besides its type and default."""

    doc: str = ""
    ge: float | None = None
    le: float | None = None
    choices: tuple[Any, ...] | None = None
    secret: bool = False
    file_only: bool = False
    restart: bool = False


NO_SPEC = FieldSpec()


class Secret(str):
    """Text that never shows itself in a repr: the value of a secret setting.

    It is a `str` in every other way, so a client library takes it as it is. `str(value)` is the plain text.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def _masked(value: object) -> str:
    return repr(value) if value is None else "'***'"


def setting(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    choices: Collection[Any] | None = None,
    secret: bool = False,
    file_only: bool = False,
    restart: bool = False,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare one setting of an `@attrs.frozen` class.

    `default` is the value where nobody sets it (`attrs.NOTHING`: it is required); `factory` builds a mutable
    default and wins over `default`. `ge` and `le` are inclusive bounds, for text and lists of the length.
    `choices` are the only values allowed. A `secret` never shows in a repr, diff, log, schema or API. What
    is `file_only` (and every secret) can't be set by run-time overrides. What needs a `restart` is taken up
    by the next start only, and says so.

    >>> @attrs.frozen
    ... class Limits:
    ...     max_bots: int = setting(10, "bots that may run at once", ge=1, le=64)
    """
    if not doc or not doc.strip():
        raise ValueError("a setting needs a sentence of documentation")
    spec = FieldSpec(
        doc=doc.strip(),
        ge=ge,
        le=le,
        choices=tuple(choices) if choices is not None else None,
        secret=secret,
        file_only=file_only or secret,
        restart=restart,
    )
    options: dict[str, Any] = {"metadata": {_KEY: spec}}
    if secret:
        options["repr"] = _masked
    if factory is not None:
        return attrs.field(factory=factory, **options)
    return attrs.field(default=default, **options)


def spec_of(metadata: Any) -> FieldSpec:
    """The spec in an attrs or dataclass field's metadata; plain keys (`doc`, `secret`, …) are taken too."""
    spec = metadata.get(_KEY)
    if isinstance(spec, FieldSpec):
        return spec
    if not metadata:
        return NO_SPEC
    secret = bool(metadata.get("secret"))
    choices = metadata.get("choices")
    return FieldSpec(
        doc=str(metadata.get("doc", "")),
        ge=metadata.get("ge"),
        le=metadata.get("le"),
        choices=tuple(choices) if choices is not None else None,
        secret=secret,
        file_only=bool(metadata.get("file_only")) or secret,
        restart=bool(metadata.get("restart")),
    )
