"""Feature flags in flagd's format: read, compiled, evaluated; no server needed."""

from deia_config.flags.definitions import compile_flags, flags_from_text, load_flags
from deia_config.flags.flagset import ErrorCode, Flag, FlagSet, Reason, Resolution

__all__ = [
    "ErrorCode",
    "Flag",
    "FlagSet",
    "Reason",
    "Resolution",
    "compile_flags",
    "flags_from_text",
    "load_flags",
]
