"""`deia-hardening GROUP VERB`: every operation of every plugin as a command.

The commands are made from the operations' own declarations, so help is never stale. A call goes through the
control socket of the service that runs on the settings' home; an operation that can do without (`offline`) runs in
this process when no service is up.
"""

from __future__ import annotations

import getpass
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import App, Parameter

from deia_hardening.cli.check import core_for
from deia_hardening.cli.output import err, fail, out, say, show
from deia_hardening.context import Actor
from deia_hardening.control.client import Client, NotRunning, Step
from deia_hardening.control.codec import plain, read_body
from deia_hardening.errors import HardeningError, SettingsError
from deia_hardening.operations import Call, Operation, Progress
from deia_hardening.problem import Problem
from deia_hardening.runtime import runtime
from deia_hardening.settings import Bytes, Ratio, Seconds, read
from deia_hardening.settings.classes import FieldInfo, fields_of
from deia_hardening.surface import Surface

_kept: list[Any] = []
BUILT_IN = frozenset({"run", "check", "init", "schema", "demo"})
DEFAULT: dict[str, dict[str, Any]] = {"audit": {}, "config": {}, "degradation": {}, "migration": {}, "recovery": {}}
_PLAIN = (bool, int, float)


def add_verbs(app: App, tokens: Sequence[str]) -> None:
    """Add the operations' commands to `app`, unless the command line names one of the built-in ones."""
    if tokens and tokens[0] in BUILT_IN:
        return
    config = _config(tokens)
    try:
        surface = _surface(config)
    except SettingsError:  # a running service still runs what it accepted: its verbs stay usable
        surface = _surface(None)
    groups: dict[str, App] = {}
    for operation in sorted(surface.operations().values(), key=lambda one: one.name):
        group = groups.get(operation.group)
        if group is None:
            group = groups[operation.group] = App(name=operation.group, help=f"Operations of {operation.group}.")
            app.command(group)
        group.command(_command(operation), name=operation.verb, help=operation.summary)
    if "migration.deploy" in surface.operations():
        deploy = surface.operations()["migration.deploy"]
        app.command(_command(deploy), name="deploy", help=deploy.summary)
    if "service" in groups:
        app.command(_command(surface.operations()["service.status"]), name="status", help="What runs, and how it is.")
        restart = surface.operations()["service.restart"]
        app.command(_command(restart), name="restart", help=restart.summary)


def _config(tokens: Sequence[str]) -> Path:
    for index, token in enumerate(tokens):
        if token in ("--config", "-c") and index + 1 < len(tokens):
            return Path(tokens[index + 1])
        if token.startswith("--config="):
            return Path(token.partition("=")[2])
    return Path(".deia/config")


def _surface(config: Path | None) -> Surface:
    core = _core(config)
    surface: Surface = core.services.get(Surface)
    _kept.append(core)  # the surface holds its core weakly; this process lives for one command
    return surface


def _core(config: Path | None) -> Any:
    if config is not None and config.exists():
        return core_for(None, config)
    from deia_hardening.cli.check import _nothing
    from deia_hardening.lifecycle import Core
    from deia_hardening.plan import Source

    return Core(Source(DEFAULT, None), _nothing, "command line")


def _command(operation: Operation) -> Callable[..., None]:
    """A function with the signature that the command line shows for this operation."""
    fields = fields_of(operation.input)
    parameters: list[inspect.Parameter] = []
    required = [name for name, field in fields.items() if field.required]
    named_first = [name for name, field in fields.items() if field.kind is str][:1]  # `audit query 'actor=alice'`
    for name, field in fields.items():
        by_place = name in (required or named_first)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if by_place else inspect.Parameter.KEYWORD_ONLY
        default = inspect.Parameter.empty if field.required else None
        shown = Parameter(help=field.spec.doc or None, show_default=_default(field))
        annotation: Any = Annotated[_type(field), shown]
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    parameters.sort(key=lambda one: one.kind)
    taken = set(fields)
    for name, common in _COMMON.items():
        if name in taken or (name in ("reason", "yes") and not operation.changes):
            continue
        if name == "if_revision" and not operation.conditional:
            continue
        parameters.append(common)

    def command(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        value = {name: given[name] for name in fields if given.get(name) is not None}
        if "folder" in fields:  # paths on the command line start where the person stands
            value.setdefault("folder", str(Path.cwd()))
        options = {name: given.get(name) for name in _COMMON if name not in taken}
        _call(operation, value, options)

    signature = inspect.Signature(parameters)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__name__ = operation.name.replace(".", "_").replace("-", "_")
    command.__doc__ = operation.summary
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameter(name: str, kind: Any, text: str, default: Any, names: list[str] | None = None) -> inspect.Parameter:
    annotation = Annotated[kind, Parameter(name=names, help=text, negative="" if kind is bool else None)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_COMMON = {
    "config": _parameter("config", Path, "Settings: a folder or a file.", Path(".deia/config"), ["--config", "-c"]),
    "json": _parameter("json", bool, "Print JSON instead of a table.", False),
    "reason": _parameter("reason", str, "Why: kept in the trail.", ""),
    "if_revision": _parameter("if_revision", int | None, "Only if this revision is still in force.", None),
    "yes": _parameter("yes", bool, "Do not ask.", False, ["--yes", "-y"]),
}  # fmt: skip


def _type(field: FieldInfo) -> Any:
    kind = field.kind
    optional = typing.get_origin(kind) is not None and type(None) in typing.get_args(kind)
    if optional:
        rest = [one for one in typing.get_args(kind) if one is not type(None)]
        kind = rest[0] if len(rest) == 1 else str
    origin = typing.get_origin(kind)
    if origin in (tuple, list, set, frozenset):
        base: Any = list[str]
    elif origin is typing.Literal or kind in _PLAIN:
        base = kind
    else:
        base = str
    return base if field.required else base | None


def _default(field: FieldInfo) -> Any:
    default = field.default
    if field.required or default is None or default == () or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return False
    text = str(default) if isinstance(default, (Seconds, Bytes, Ratio)) else repr(default)
    return lambda _value: text


def _call(operation: Operation, value: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    config: Path = options.get("config") or Path(".deia/config")
    as_json = bool(options.get("json"))
    reason = options.get("reason") or str(value.get("reason", ""))
    if operation.confirm and not options.get("yes") and sys.stdin.isatty():
        say(f"{operation.confirm} [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            fail(["nothing was done"])
    try:
        client = Client(read(config if config.exists() else {}).home)
        _online(client, operation, value, reason, options.get("if_revision"), as_json)
    except NotRunning as error:
        if not operation.offline:
            fail([str(error)])
        _offline(_core(config), operation, value, reason, as_json)
    except Problem as problem:
        _refused(problem)
    except HardeningError as error:
        fail([str(error)])


def _online(
    client: Client,
    operation: Operation,
    value: Mapping[str, Any],
    reason: str,
    if_revision: int | None,
    as_json: bool,
) -> None:
    output: Any = None
    deploys = operation.name == "migration.deploy"
    shown = deploys and out.is_terminal and not as_json
    waits = deploys and bool(value.get("wait"))
    if shown or waits:
        value = {**value, "wait": False}  # it is waited for by looking
    for step in client.follow(operation.name, value, changes=operation.changes, reason=reason, if_revision=if_revision):
        if isinstance(step, Step):
            _progress(step.message, step.done)
        else:
            output = step
    if shown:
        from deia_hardening.cli.sidebyside import watch

        watch(client, str(output["rollout"]))
        return
    if waits:
        from deia_hardening.cli.sidebyside import wait

        output = wait(client, str(output["rollout"]))
    _finish(output, as_json)


def _offline(core: Any, operation: Operation, value: Mapping[str, Any], reason: str, as_json: bool) -> None:
    actor = Actor(type="operator", id=getpass.getuser() if hasattr(os, "getuid") else "local", auth="shell")
    surface = core.services.get(Surface)

    async def run() -> Any:
        output: Any = None
        structured = read_body(operation.input, json.dumps(value).encode())
        async for step in surface.invoke(operation.name, structured, Call(actor, reason, local=True)):
            if isinstance(step, Progress):
                _progress(step.message, step.done)
            else:
                output = step
        return output

    try:
        output = runtime().submit(run).result()
    except Problem as problem:
        _refused(problem)
    _finish(plain(output), as_json)


def _progress(message: str, done: float | None) -> None:
    err.print(f"… {message}" if done is None else f"… {done:4.0%} {message}", markup=False)


def _finish(output: Any, as_json: bool) -> None:
    show(output, as_json)
    if isinstance(output, Mapping) and output.get("ok") is False:
        raise SystemExit(1)


def _refused(problem: Problem) -> typing.NoReturn:
    lines = [f"{problem.status} {problem.title}: {problem.detail}"]
    lines += [str(item) for item in problem.extensions.get("problems", ())]
    fail(lines)
