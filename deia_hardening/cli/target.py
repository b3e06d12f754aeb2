"""Finding the app that `module:attribute` names, as servers do: with the current folder importable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deia_hardening.errors import HardeningError, SettingsError
from deia_hardening.peers import import_string


def load_target(target: str, factory: bool = False) -> Any:
    """Import the app. Raises HardeningError that says what is missing."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module, _, name = target.partition(":")
    if "/" in module or module.endswith(".py"):  # a file, as a person completes its name
        module = module.removeprefix("./").removesuffix(".py").replace("/", ".")
    target = f"{module}:{name}" if ":" in target else f"{module}:app"
    try:
        app = import_string(target)
    except SettingsError as error:
        message = error.problems[0].message
        if not message.startswith((f"cannot import {target!r}", f"{target!r} is not")):
            raise  # the app's own settings: told as they are
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, ImportError | AttributeError):
            raise cause from None  # the app's own: its author wants the traceback
        raise HardeningError(f"{message}; name the app as module:attribute, seen from {here}") from error
    if factory:
        app = app()
    if not callable(app):
        raise HardeningError(f"{target} is no ASGI app but {type(app).__name__}; name it as module:attribute")
    return app
