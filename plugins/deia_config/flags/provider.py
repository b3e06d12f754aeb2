"""An OpenFeature provider (specification 0.8, sections 2 and 5) over a `FlagSet` that a reload may replace.

Needs the extra `openfeature`. Resolution never raises: errors are error codes with the caller's default. A change
of flags is told as PROVIDER_CONFIGURATION_CHANGED with the keys that changed; files that were refused as
PROVIDER_STALE, since older flags stay in force, and their repair as PROVIDER_READY.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode as OpenFeatureErrorCode
from openfeature.exception import ProviderNotReadyError
from openfeature.flag_evaluation import FlagResolutionDetails
from openfeature.flag_evaluation import Reason as OpenFeatureReason
from openfeature.hook import Hook
from openfeature.provider import AbstractProvider, Metadata

from deia_config.flags.flagset import ErrorCode, FlagSet, Reason

NAME = "deia-hardening"


class FlagProvider(AbstractProvider):
    """Resolves flags from `flags()` (the running flag set), e.g. `FlagProvider(current(ConfigManager))`.

    `source` is a `FlagSet`, a function that returns the running one, or the ConfigManager, whose reloads are then
    told as events. Over the ConfigManager flags are those that `feature()` sees: within a request from the
    definitions that its first flag came from, and turned off (DISABLED) where degradation turns them off.
    """

    def __init__(self, source: Any, *, hooks: Sequence[Hook] = ()) -> None:
        super().__init__()
        self._hooks = list(hooks)
        self._forget: list[Callable[[], None]] = []
        self._source = source
        if isinstance(source, FlagSet):
            self._flags: Callable[[], FlagSet] = lambda: source
        elif callable(source):
            self._flags = source
        else:
            self._flags = getattr(source, "flags_here", None) or (lambda: source.flag_set)
        self._masked: Callable[[str], bool] = getattr(source, "masked", lambda key: False)

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Subscribe to reloads. Raises ProviderNotReadyError where the flags can't be read yet."""
        try:
            self._flags()
        except Exception as error:
            raise ProviderNotReadyError(str(error)) from error
        if not self._forget:
            for name, callback in (("on_flags_changed", self._changed), ("on_flags_stale", self._stale)):
                subscribe = getattr(self._source, name, None)
                if subscribe is not None:
                    self._forget.append(subscribe(callback))

    def shutdown(self) -> None:
        """End the subscription."""
        while self._forget:
            self._forget.pop()()

    def get_metadata(self) -> Metadata:
        return Metadata(name=NAME)

    def get_provider_hooks(self) -> list[Hook]:
        return self._hooks

    def _changed(self, keys: Sequence[str]) -> None:
        self.emit_provider_configuration_changed(
            ProviderEventDetails(flags_changed=list(keys), message="the flag files changed")
        )

    def _stale(self, why: str) -> None:
        if why:
            self.emit_provider_stale(ProviderEventDetails(message=f"the flag files were refused: {why}"))
        else:
            self.emit_provider_ready(ProviderEventDetails(message="the flag files are in force"))

    def _resolve(
        self, key: str, default: Any, context: EvaluationContext | None, fits: Callable[[Any], Any]
    ) -> FlagResolutionDetails[Any]:
        found = self._flags().resolve(key, default, _attributes(context))
        metadata: Mapping[str, Any] = dict(found.metadata)
        if found.error_code is not ErrorCode.FLAG_NOT_FOUND and self._masked(key):
            off = False if isinstance(default, bool) else default
            return FlagResolutionDetails(value=off, reason=OpenFeatureReason.DISABLED, flag_metadata=metadata)
        if found.error_code is not None:
            return FlagResolutionDetails(
                value=default,
                error_code=_CODES[found.error_code],
                error_message=found.error_message,
                reason=OpenFeatureReason.ERROR,
                flag_metadata=metadata,
            )
        if found.variant is None:
            return FlagResolutionDetails(value=default, reason=_REASONS[found.reason], flag_metadata=metadata)
        value = fits(found.value)
        if value is _MISFIT:
            return FlagResolutionDetails(
                value=default,
                error_code=OpenFeatureErrorCode.TYPE_MISMATCH,
                error_message=f"the value of {key!r} is a {type(found.value).__name__}",
                reason=OpenFeatureReason.ERROR,
                variant=None,
                flag_metadata=metadata,
            )
        return FlagResolutionDetails(
            value=value, variant=found.variant, reason=_REASONS[found.reason], flag_metadata=metadata
        )

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, default_value, evaluation_context, _boolean)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, default_value, evaluation_context, _text)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, default_value, evaluation_context, _integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, default_value, evaluation_context, _float)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Any,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Any]:
        return self._resolve(flag_key, default_value, evaluation_context, _object)


_MISFIT = object()
_CODES = {code: OpenFeatureErrorCode(code.value) for code in ErrorCode}
_REASONS = {reason: OpenFeatureReason(reason.value) for reason in Reason}


def _attributes(context: EvaluationContext | None) -> dict[str, Any]:
    if context is None:
        return {}
    attributes = dict(context.attributes)
    if context.targeting_key is not None:
        attributes["targetingKey"] = context.targeting_key
    return attributes


def _boolean(value: Any) -> Any:
    return value if isinstance(value, bool) else _MISFIT


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else _MISFIT


def _integer(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _MISFIT
    return int(value) if isinstance(value, int) or value.is_integer() else _MISFIT


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _MISFIT
    try:
        return float(value)
    except OverflowError:  # a whole number beyond what a float holds
        return _MISFIT


def _object(value: Any) -> Any:
    return value if isinstance(value, (dict, list)) else _MISFIT
