"""The `consilium` command line: its commands put together, and errors turned into sentences and exit codes."""

import logging
import os
import signal
import sys
from typing import Annotated, NoReturn

import click
import typer

import consilium.common
from consilium.commands import (
    adapt,
    audit,
    calibrate,
    compare,
    compose,
    data,
    demo,
    evaluate,
    export,
    flower,
    listing,
    model,
    new,
    predict,
    relay,
    run,
    runs,
    schema,
    serve,
    server,
    simulate,
    site,
    what_leaves,
)
from consilium.commands.home_paths import with_home_paths
from consilium.commands.parameters import examples
from consilium.commands.scripting import print_error, wants_json
from consilium.commands.usage import in_words
from consilium.common.errors import ConfigError, ConsiliumError, clean
from consilium.common.host.extras import EXTRAS, missing

app = typer.Typer(
    name="consilium",
    help="Learn together without sharing data: personalised federated, transfer and meta-learning.",
    epilog=examples("consilium demo", "consilium run --help"),
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    suggest_commands=False,  # click does it too
    pretty_exceptions_enable=False,
)
for commands in (
    demo.app,
    run.app,
    compare.app,
    simulate.app,
    listing.app,
    adapt.app,
    predict.app,
    evaluate.app,
    calibrate.app,
    export.app,
    serve.app,
    compose.app,
    schema.app,
    new.app,
    what_leaves.app,
):
    app.add_typer(commands)
for name, commands in {
    "runs": runs.app,
    "audit": audit.app,
    "server": server.app,
    "site": site.app,
    "relay": relay.app,
    "model": model.app,
    "data": data.app,
    "flower": flower.app,
}.items():
    app.add_typer(commands, name=name)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(consilium.common.__version__)
        raise typer.Exit


_LEFT_OUT = frozenset({"torch", "torchvision", "sklearn", "scipy", "PIL"})
"""Packages of which the server's image lacks some."""

_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""


def main() -> NoReturn:
    """Run the command line; a ConsiliumError becomes a sentence on stderr and its exit code."""
    _prepare()
    try:
        code = with_home_paths(typer.main.get_command(app))(standalone_mode=False) or 0
    except click.ClickException as error:
        code = _misused(in_words(error))
    except ConsiliumError as error:
        code = _report(error)
    except ModuleNotFoundError as error:
        code = _report(_left_out(error))
    except (KeyboardInterrupt, click.Abort):
        print("stopped", file=sys.stderr)
        code = _for_programs("Interrupted", "stopped", _INTERRUPTED)
    if code == _INTERRUPTED:  # a '-m' program whose import met Ctrl-C ends by the signal, even where that was handled
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _prepare() -> None:
    """Set up logs and signals, before anything of flwr or gRPC is imported: they read their variables once."""
    from consilium.common.host.logs import start_log
    from consilium.common.host.parents import follow_parent

    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC has a line for every stranger who knocks
    start_log()
    for noisy in ("httpx", "flwr", "alembic", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    follow_parent()
    if sys.argv[1:2] in (["demo"], ["run"], ["simulate"], ["follow"], ["flower"]):
        # Also where a shell in the background has told its children to ignore Ctrl-C.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)


def _report(error: ConsiliumError) -> int:
    told = "\n".join(clean(line, 100_000) for line in str(error).split("\n"))  # it may name a file, a folder, a column
    print(f"{type(error).__name__}: {told}", file=sys.stderr, flush=True)
    return _for_programs(type(error).__name__, str(error), error.exit_code)


def _misused(error: click.ClickException) -> int:
    error.show()
    return _for_programs("UsageError", error.format_message(), error.exit_code)


def _for_programs(kind: str, sentence: str, code: int) -> int:
    """Print an error's document where the command line has `--json`; return its exit code."""
    if wants_json(sys.argv[1:]):
        print_error(kind, sentence, code)
    return code


def _left_out(error: ModuleNotFoundError) -> ConfigError:
    """Return the sentence about a package of an extra, or one that images leave out; raise the error of any other."""
    package = (error.name or "").partition(".")[0]
    if package in EXTRAS:
        return missing("this command", package)
    if package not in _LEFT_OUT:
        raise error
    return ConfigError(
        f"this installation has no '{package}', which this command needs; the server's image leaves out what only "
        "sites and comparisons use: run it where consilium was installed with pip"
    )
