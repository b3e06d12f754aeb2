"""`deia-hardening`: run, check and operate hardened services.

The verbs of people (`run`, `check`, `init`, `schema`, `demo`) stand here; `GROUP VERB` commands come from the
operations of the plugins and are sent to the running service through its control socket.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from deia_hardening.cli.output import fail, say
from deia_hardening.errors import HardeningError, SettingsError

CONFIG = Path(".deia/config")

Config = Annotated[Path, Parameter(name=["--config", "-c"], help="Settings: a folder or a file.")]

Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

app = App(
    name="deia-hardening",
    help="Run, check and operate hardened ASGI services.",
    version_flags=["--version"],
)


@app.command
def run(
    target: str,
    /,
    *,
    config: Config = CONFIG,
    host: str = "127.0.0.1",
    port: Port = 8000,
    workers: int = 1,
    uds: Path | None = None,
    factory: bool = False,
    lame_duck: str = "5s",
    drain: str = "10s",
    start_timeout: str = "60s",
    log_level: LogLevel = "info",
) -> None:
    """Serve an app, hardened, with uvicorn workers under a supervisor that holds the socket.

    An app that calls harden() itself is served as it is; any other is hardened with --config first. On SIGTERM it
    becomes unready, serves on for the lame duck time, drains streams, stops the plugins and exits. SIGHUP, or
    `deia-hardening restart`, replaces the workers one by one with fresh ones (new code, a new release of this
    package) without losing a request; one that does not start leaves the old ones serving.

    Parameters
    ----------
    target
        The app, as module:attribute.
    host
        Address to listen on.
    port
        TCP port.
    workers
        Number of worker processes.
    uds
        Listen on this Unix socket instead.
    factory
        The target is a function that returns the app.
    lame_duck
        How long to serve on after SIGTERM, unready.
    drain
        How long streams may go on after that.
    start_timeout
        How long a worker may take until it serves.
    log_level
        uvicorn's log level.
    """
    from deia_hardening.cli.run import serve

    code = serve(
        target, config, host=host, port=port, workers=workers, uds=uds, factory=factory,
        lame_duck=lame_duck, drain=drain, start_timeout=start_timeout, log_level=log_level,
    )  # fmt: skip
    raise SystemExit(code)


@app.command
def check(target: str | None = None, /, *, config: Config = CONFIG, chain: bool = False) -> None:
    """Try the settings on every plugin (and on the app's own settings), with no effect. Exit code 1 when refused.

    Parameters
    ----------
    target
        The app, as module:attribute: then its own settings class is checked too.
    chain
        Print the order of the layers.
    """
    from deia_hardening.cli.check import check_settings

    raise SystemExit(check_settings(target, config, chain))


@app.command
def init(folder: Path = CONFIG, /, *, force: bool = False) -> None:
    """Write a commented starter file, and the schema that editors check it with.

    Parameters
    ----------
    folder
        Where the settings shall live.
    force
        Replace a starter file that is there.
    """
    from deia_hardening.cli.init import write_starter

    for line in write_starter(folder, force):
        say(line)


@app.command
def schema(*, config: Config = CONFIG) -> None:
    """Print the JSON Schema of the settings, for every plugin that is installed."""
    from deia_hardening.cli.init import schema_text

    sys.stdout.write(schema_text(config))


@app.command
def demo(
    *,
    seconds: Annotated[
        float, Parameter(help="Stop after this many seconds; 0: until Ctrl-C.", validator=Number(gte=0))
    ] = 0.0,
    port: Annotated[Port, Parameter(help="TCP port; 0: any free one.")] = 0,
    folder: Annotated[Path | None, Parameter(help="Keep the demo's home here (default: a new temporary one).")] = None,
) -> None:
    """Start the example bot service, hardened, with a little traffic; tells what to look at and what to try next."""
    from deia_hardening.cli.demo import run_demo

    raise SystemExit(run_demo(seconds, port, folder))


def main(arguments: list[str] | None = None) -> Any:
    """The entry point of the command `deia-hardening`."""
    from deia_hardening.cli.verbs import add_verbs

    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        Path.cwd()
    except OSError as error:
        fail([f"the folder that this runs in can't be used ({error.strerror}); change to one that exists"])
    try:
        add_verbs(app, tokens)
        return app(tokens)
    except SettingsError as error:
        return fail([str(problem) for problem in error.problems], "the settings were refused")
    except HardeningError as error:
        return fail([str(error)])
    except OSError as error:
        if error.filename is None:
            raise
        return fail([f"{error.filename}: {error.strerror}"])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
