"""The command line as a whole: help of every command, its examples, the dataclasses behind options, wrong inputs."""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import consilium.common
from consilium.commands.home_paths import HomePath, with_home_paths
from consilium.commands.main import app, main
from consilium.commands.parameters import examples, with_options
from consilium.commands.rows import print_rows
from consilium.commands.usage import in_words
from consilium.common.errors import ConfigError, ModelError
from consilium.comparison.options import CompareOptions
from consilium.data.options import SplitOptions
from consilium.demo.demo import run_demo
from consilium.demo.options import DemoOptions
from consilium.running.options import AppOptions

ROOT = typer.main.get_command(app)


def commands(group: click.Command = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command and group with what is typed to call it."""
    yield " ".join(path), group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))


EVERY = dict(commands())
SINGLE = {path: command for path, command in EVERY.items() if not isinstance(command, click.Group)}


def invoke(*arguments: str) -> str:
    """Return what a command that succeeds prints, on a terminal wide enough that nothing is folded."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert 0 == done.exit_code, done.output
    return done.output


def failure_of(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Return the exit code of the program, called with these arguments, and what it wrote to both outputs."""
    monkeypatch.setattr(sys, "argv", ["consilium", *arguments])
    monkeypatch.setattr("consilium.commands.main._prepare", lambda: None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, "".join(capfd.readouterr())


# --- help ------------------------------------------------------------------------------------------


def test_every_command_is_walked() -> None:
    """Neither a command nor a group is missed below."""
    assert {"demo", "run", "follow", "stop", "compare", "list", "adapt", "compose"} <= SINGLE.keys()
    assert {"server start", "site init", "site approve-app", "data split", "flower run", "runs list"} <= SINGLE.keys()
    assert 31 <= sum(isinstance(param, click.Argument) for command in SINGLE.values() for param in command.params)


@pytest.mark.parametrize("path", EVERY)
def test_help_shows_the_text_of_every_argument_and_option(path: str) -> None:
    """Under click 8.5, typer 0.20 shows those of options only."""
    shown = " ".join(invoke(*path.split(), "--help").replace("│", " ").split())
    assert EVERY[path].help
    for param in EVERY[path].params:
        text = getattr(param, "help", None)
        assert text, f"{path}: {param.name} has no help"
        assert " ".join(text.split()) in shown, f"{path}: the help of {param.name} is not shown"


@pytest.mark.parametrize("path", EVERY)
def test_short_option_for_help_works_everywhere(path: str) -> None:
    """`-h` is `--help`."""
    assert invoke(*path.split(), "--help") == invoke(*path.split(), "-h")


@pytest.mark.parametrize("path", SINGLE)
def test_examples_are_in_the_help_and_parse(path: str) -> None:
    """Each is a command line of this command; a shell reads it and all its options exist."""
    lines = [line[2:] for line in (SINGLE[path].epilog or "").split("\n") if line.startswith("$ ")]
    shown = invoke(*path.split(), "--help")
    assert lines, f"{path} has no examples"
    for line in lines:
        assert f"$ {line}" in shown and len(line) <= 76, line
        words = shlex.split(line)
        assert ["consilium", *path.split()] == words[: len(path.split()) + 1]
        SINGLE[path].make_context(path, words[len(path.split()) + 1 :])


def test_version_is_printed() -> None:
    """`consilium --version` is the version and nothing else."""
    assert consilium.common.__version__ == invoke("--version").strip()


def test_start_of_the_command_line_loads_nothing_large() -> None:
    """`consilium --help` answers at once: what a command needs is imported when it runs."""
    large = ("torch", "numpy", "pydantic", "flwr", "grpc", "httpx", "matplotlib", "sklearn", "pandas", "cryptography")
    code = f"import sys, consilium.commands.main; print([name for name in {large} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "[]" == done.stdout.strip()


def completions(shell: str, **variables: str) -> list[str]:
    """Return what the program answers to the script of `--install-completion`."""
    done = subprocess.run(
        [Path(sys.executable).parent / "consilium"],
        env={**os.environ, "_CONSILIUM_COMPLETE": f"complete_{shell}", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("consilium sit", ["site"]), ("consilium server re", ["revoke", "retire-ca", "restore", "revoke-group"])],
)
def test_bash_completes_commands(typed: str, completed: list[str]) -> None:
    """And nothing else: names of files would be wrong here."""
    last = str(len(typed.split()) - 1)
    assert completed == completions("bash", COMP_WORDS=typed, COMP_CWORD=last)


@pytest.mark.parametrize("typed", ["consilium run stu", "consilium compare study.toml --out ru"])
def test_shells_complete_paths_by_themselves(typed: str) -> None:
    """No answer sends bash to the names of files, for which its script has `-o default`; zsh is told `_files`."""
    words = typed.split()
    assert [] == completions("bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert ["_files"] == completions("zsh", _TYPER_COMPLETE_ARGS=typed)


# --- options from a dataclass ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "record"),
    [("demo", DemoOptions), ("compare", CompareOptions), ("data split", SplitOptions), ("flower run", AppOptions)],
)
def test_options_are_the_fields_of_the_dataclass(path: str, record: type[Any]) -> None:
    """Every field that has a help text is a parameter with the field's default."""
    params = {param.name: param for param in SINGLE[path].params}
    shared = [field for field in fields(record) if field.name in params]
    assert len(shared) >= len(fields(record)) - 1
    for field in shared:
        if params[field.name].required:
            continue
        assert field.default == params[field.name].get_default(click.Context(SINGLE[path])), field.name


@dataclass(frozen=True)
class Tea:
    """Options of a command that only this file has."""

    kind: Annotated[str, typer.Argument(help="Which tea.")]
    minutes: Annotated[int, typer.Option(min=1, help="How long.")] = 3
    secret: int = 7


def test_command_gets_a_record_of_what_was_typed_and_keeps_its_own_parameters() -> None:
    """Fields without a help text keep their defaults and are no options."""
    drunk: list[tuple[Tea, bool]] = []
    tea = typer.Typer()

    @tea.command(epilog=examples("tea green"))
    @with_options(Tea)
    def make(options: Tea, milk: Annotated[bool, typer.Option("--milk", help="With milk.")] = False) -> None:
        """Make tea."""
        drunk.append((options, milk))

    assert 0 == CliRunner().invoke(tea, ["green", "--minutes", "5", "--milk"]).exit_code
    assert [(Tea("green", 5), True)] == drunk
    assert 0 != CliRunner().invoke(tea, ["green", "--minutes", "0"]).exit_code
    assert 0 != CliRunner().invoke(tea, ["green", "--secret", "1"]).exit_code


# --- wrong inputs ----------------------------------------------------------------------------------

WORDS_OF_LIBRARIES = re.compile(
    r"pydantic|Input should|validation error|Traceback|type=|\bctx\b|\^\[|\[a-z0-9|\\[dwsZA]|\$'|x[<>]=|<=x",
    re.IGNORECASE,
)
"""What no person should have to read: names of libraries, their types, regular expressions, their ranges."""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "server start --address 0.0.0.0:99999",
            "--address: the port must be a number from 1 to 65535, got '0.0.0.0:9",
        ),
        (
            "server start --address 127.0.0.1:0",
            "--address: the port must be a number from 1 to 65535, got '127.0.0.1:0",
        ),
        ("server start --address 127.0.0.1:-4", "--address: the port must be a number from 1 to 65535, got '127.0.0.1"),
        (
            "server start --address 127.0.0.1:abc",
            "--address: must be host:port, e.g. 127.0.0.1:9095 or [::1]:9095, got",
        ),
        ("server start --address ::1:9092", "--address: must be host:port, e.g. 127.0.0.1:9095 or [::1]:9095, got '::"),
        (
            "server start --address [::1::]:9092",
            "--address: between the brackets must stand an IPv6 address, got '[::1",
        ),
        ("server start --address :9092", "--address: must be host:port"),
        ("server start --metrics localhost:99999", "--metrics: the port must be a number from 1 to 65535, got 'localh"),
        ("server start --address 0.0.0.0:9094", "--address and --metrics both have port 9094; give each a port of its"),
        ("server start --address localhost:9094", "--address and --metrics both have port 9094; give each a port of"),
        ("server start --host 'a b'", "--host: must be a name or an address, e.g. study.example.org, 192.0.2.7 or 200"),
        ("server start --host localhost:9092", "without a port, got 'localhost:9092'"),
        ("server approve site.csr --name Berlin", "--name: must be small letters, digits and hyphens, 63 at most, e.g"),
        ("server rotate site.csr --name 'St. Hilda'", "--name: must be small letters, digits and hyphens, 63 at most"),
        ("site start --metrics 127.0.0.1:99999", "--metrics: the port must be a number from 1 to 65535, got '127.0.0."),
        ("site init --name berlin --server a:99999", "server: the port must be a number from 1 to 65535, got 'a:99999"),
        ("site init --name berlin --server a:1 --metrics a:0", "metrics_address: the port must be a number from 1 to "),
        ("site start", "make a site with 'consilium site init', or run this command in the folder in which"),
        ("site accept bundle.json", "make a site with 'consilium site init', or run this command in the folder in whi"),
        ("site rotate-key", "make a site with 'consilium site init', or run this command in the folder in which"),
        ("site rotate-key --activate", "make a site with 'consilium site init', or run this command in the folder in"),
        ("site check", "make a site with 'consilium site init', or run this command in the folder in which"),
        ("site approve-app --list", "make a site with 'consilium site init', or run this command in the folder in wh"),
        ("site approve-app app", "make a site with 'consilium site init', or run this command in the folder in which"),
        ("adapt model", "make a site with 'consilium site init', or run this command in the folder"),
        ("demo --rounds 0", "--rounds: must be a whole number of at least 1, got '0'"),
        ("demo --rounds many", "--rounds: must be a whole number of at least 1, got 'many'"),
        ("demo --rounds '1 is not 2'", "--rounds: must be a whole number of at least 1, got '1 is not 2'"),
        ("demo --data cats", "--data: must be one of digits, heart-disease, images, got 'cats'"),
        ("demo --data images", "--data images needs --data-dir"),
        ("demo --colour red", "No such option '--colour'"),
        ("demo --seed", "Option '--seed' requires an argument."),
        ("demo cats", "Got unexpected extra argument (cats)"),
        ("run", "Missing argument 'STUDY'."),
        ("run gone.toml", "cannot read 'gone.toml'"),
        ("stopp x", "No such command 'stopp'. Did you mean 'stop'?"),
        ("compare study.toml --seeds 0", "--seeds: must be a whole number of at least 1, got '0'"),
        ("compare study.toml --target high", "--target: must be a number, got 'high'"),
        ("compare gone.toml", "cannot read 'gone.toml'"),
        ("adapt", "Missing argument 'MODEL'."),
        ("adapt model --steps 1.5", "--steps: must be a whole number, got '1.5'"),
        ("data split pool.npz --out x --by magic", "--by: must be one of dirichlet, classes, quantity,"),
        (
            "data split pool.npz --out x --by iid --sites 2000",
            "--sites: must be a whole number of at most 1000, got '2000'",
        ),
        ("data split pool.npz --out x --by iid", "--by iid needs --sites"),
        ("data split pool.npz --by iid", "Missing option '--out'."),
        ("data fetch cats --to x", "there is no public data set 'cats'; known: heart-disease,"),
        ("site init --name Berlin! --server a:1", "must be"),
        ("site init --name berlin --server nowhere", "must be"),
        ("site check gone.toml", "cannot read 'gone.toml'"),
        ("site approve-app", "'site' is no site's folder: it has no site.toml"),
        ("flower run app --most-mb 0", "--most-mb: must be a whole number of at least 1, got '0'"),
        ("server approve site.csr", "Missing option '--name'."),
        ("server approve site.csr --name berlin", "no server runs in 'server-home'; start one with"),
        ("site check gone.toml", "run this command in the folder in which 'consilium site init' ran"),
    ],
)
def test_wrong_input_is_a_sentence(
    line: str, sentence: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It names the option, what is expected and what was given, in words of people."""
    monkeypatch.chdir(tmp_path)
    code, text = failure_of(capfd, monkeypatch, *shlex.split(line))
    assert 0 != code
    assert sentence in text
    assert WORDS_OF_LIBRARIES.search(text) is None, text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "nope"}, "method: there is no kind 'nope'; known: local, fedavg"),
        ({"model": "resnet19"}, "model.name: there is no model 'resnet19'; did you mean"),
        ({"data": "heart-disease"}, "--data heart-disease needs --data-dir"),
        ({"data_dir": Path("heart")}, "--data-dir means nothing with --data digits"),
        ({"pretrained": Path("nofile")}, "--pretrained: no such file 'nofile'"),
    ],
)
def test_demo_refuses_a_wrong_option_before_anything_starts(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """No folder of a run is left, and nothing was shown of one."""
    shown = io.StringIO()
    with pytest.raises((ConfigError, ModelError), match=sentence):
        run_demo(DemoOptions(runs=tmp_path / "runs", **change), Console(file=shown))
    assert ("", []) == (shown.getvalue(), list(tmp_path.iterdir()))


def test_site_without_an_approved_app_says_so(tmp_path: Path) -> None:
    """An empty answer would look like a command that did nothing."""
    (tmp_path / "site.toml").touch()
    assert "no app is approved at this site" in invoke("site", "approve-app", "--list", "--folder", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "package", "sentence"),
    [
        ("demo", "matplotlib", "consilium demo needs matplotlib, which is not installed; install it with: pip install"),
        ("run study.toml", "matplotlib", "the run's report needs matplotlib, which is not installed; install it with"),
        ("run study.toml --detach", "matplotlib", "cannot read 'study.toml'"),
        ("compare study.toml", "pandas", "consilium compare needs pandas, which is not installed; install it with: pi"),
        ("compare study.toml", "matplotlib", "pip install 'consilium[study]'"),
        ("data split pool.npz --out o --by iid --sites 2", "matplotlib", "pip install 'consilium[report]'"),
        ("adapt model --out out", "matplotlib", "the picture of --out needs matplotlib, which is not installed; insta"),
        ("adapt model", "matplotlib", "cannot read 'site/site.toml'"),
    ],
)
def test_missing_extra_is_a_sentence_before_anything_is_done(
    line: str,
    package: str,
    sentence: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With the command that installs it; what needs none goes on as far as it can."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("consilium.common.host.extras.find_spec", lambda name: None if name == package else name)
    code, text = failure_of(capfd, monkeypatch, *shlex.split(line))
    assert 0 != code
    assert sentence in text
    assert [] == list(tmp_path.iterdir())


# --- every option, of the wrong kind -----------------------------------------------------------------


def wrong_values() -> Iterator[tuple[str, str]]:
    """Yield each command with each of its numbers and choices, as they are typed."""
    for path, command in SINGLE.items():
        for param in command.params:
            if isinstance(param.type, click.Choice | click.types.IntParamType | click.types.FloatParamType):
                yield path, param.name or ""


@pytest.mark.parametrize(("path", "name"), list(wrong_values()))
def test_every_number_and_choice_of_the_wrong_kind_is_a_sentence(path: str, name: str) -> None:
    """It names the option as it is typed, what is expected in words, and what was given."""
    arguments, options = list[str](), list[str]()
    for param in SINGLE[path].params:
        value = "x!" if param.name == name else "y"
        if isinstance(param.type, click.Choice) and param.name != name:
            value = str(param.type.choices[0])
        if isinstance(param.type, click.types.IntParamType) and param.name != name:
            value = "7"
        if isinstance(param, click.Argument):
            arguments += [value] if param.required or param.name == name else []
        elif param.required or param.name == name:
            options += [max(param.opts, key=len), value]
    with pytest.raises(click.ClickException) as caught:
        SINGLE[path].make_context(path, [*options, *arguments])
    sentence = in_words(caught.value).format_message()
    assert re.fullmatch(r"(--)?[A-Za-z-]+: must be (one of|a whole number|a number).*, got 'x!'", sentence), sentence
    assert WORDS_OF_LIBRARIES.search(sentence) is None


# --- paths with ~ --------------------------------------------------------------------------------------


def test_every_path_may_begin_with_the_home_folder() -> None:
    """No command is left out, whoever adds one."""
    command = with_home_paths(typer.main.get_command(app))
    kinds = [param.type for _, one in commands(command) for param in one.params if isinstance(param.type, click.Path)]
    assert {HomePath} == {type(kind) for kind in kinds}
    assert len(kinds) > 30


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("data split ~/pool.npz --out=~/out --by iid --sites 2", "pool '{home}/pool.npz' does not exist"),
        ("site start ~/site.toml", "cannot read '{home}/site.toml'"),
        ("server sites --home=~/server", "no server runs in '{home}/server'"),
        ("site approve-app --folder=~/site --list", "'{home}/site' is no site's folder"),
        ("demo --pretrained=~/weights.pt", "--pretrained: no such file '{home}/weights.pt'"),
        ("server sites --home=~nobody-of-this-name/server", "no server runs in '~nobody-of-this-name/server'"),
    ],
)
def test_path_with_a_tilde_is_in_the_home_folder(
    line: str, sentence: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also after `=`, where shells leave it as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    _, text = failure_of(capfd, monkeypatch, *line.split())
    assert sentence.format(home=tmp_path / "home") in text


def test_list_has_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    """Tabs where a program reads, columns on a terminal."""
    print_rows(["site", "status"], [["berlin", "online"], ["st-hilda", "-"]])
    assert "site\tstatus\nberlin\tonline\nst-hilda\t-\n" == capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        print_rows(["site", "status"], [["berlin", "online"], ["st-hilda", "-"]])
    assert "site      status\nberlin    online\nst-hilda  -\n" == capsys.readouterr().out
