"""The commands `consilium audit ...`: for an auditor, who checks a run, and a hospital that shows what it did."""

from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from consilium.commands.parameters import Runs, Settings, console, examples
from consilium.commands.scripting import Document, Outcome, with_json

_HELP = ("-h", "--help")


class _RunByDefault(TyperGroup):
    """A group that audits a run where no command of its is named: `consilium audit RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` in front of arguments that begin with no command."""
        if args and args[0] not in self.commands and args[0] not in _HELP:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Check that a run's log is whole, and that its shares and weights follow from what the sites sent.",
    epilog=examples("consilium audit 20260101-120000-hearts", "consilium audit run hearts --out audit.html"),
    no_args_is_help=True,
)


@app.command(
    "run",
    epilog=examples(
        "consilium audit run hearts",
        "consilium audit run hearts --out audit.html --opened berlin-data.json",
        "consilium audit run hearts --head 3f9a1c04...",
    ),
)
@with_json
def run(
    run: Annotated[str, typer.Argument(help="A run's name, its beginning or its end, or its folder.", metavar="RUN")],
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Write the findings as one page that opens offline.")] = None,
    head: Annotated[
        str | None, typer.Option(help="SHA-256 of a line of the log that somebody noted: the log must still hold it.")
    ] = None,
    opened: Annotated[
        list[Path] | None, typer.Option(help="A file of 'consilium audit open', from a hospital; may be given again.")
    ] = None,
) -> Outcome:
    """Audit a run at the coordinator: its log, every round's shares, the weights where updates were kept, its files."""
    from consilium.common.errors import StateError, clean
    from consilium.common.host.files import write_atomically
    from consilium.common.protocol.opened import read_opened
    from consilium.history.folder import find_entry
    from consilium.privacy.audit.audit import audit_run
    from consilium.privacy.audit.page import render_audit
    from consilium.privacy.audit.terminal import print_audit

    shown = tuple(read_opened(path) for path in opened or ())
    audit = audit_run(find_entry(runs, run).folder, head=head, opened=shown)
    print_audit(audit, console())
    if out is not None:
        write_atomically(out, render_audit(audit).encode())
        typer.echo(f"written: {out}")
    if audit.problems:
        typer.echo(f"the audit fails: {clean(audit.problems[0], 10_000)}", err=True)
    return Outcome(audit.as_json(), StateError.exit_code if audit.problems else 0)


@app.command(
    "open",
    epilog=examples("consilium audit open 20260101-120000-hearts --out berlin-data.json"),
)
@with_json
def open_(
    run: Annotated[str, typer.Argument(help="The run's name, as the coordinator and this site's log have it.")],
    settings: Settings = Path("site/site.toml"),
    out: Annotated[Path | None, typer.Option(help="Write it as a file for the auditor.")] = None,
) -> Document:
    """At a hospital: show the digest of the data that it had in a run, so that it fits the commitment it had sent."""
    from consilium.client.operations.open_commitment import open_commitment
    from consilium.common.host.files import write_atomically
    from consilium.common.study.load import load_site

    opened = open_commitment(load_site(settings), run)
    typer.echo(f"data digest  {opened.data}")
    typer.echo(f"opening      {opened.opening}")
    typer.echo(f"commitment   {opened.commitment}")
    if out is not None:
        write_atomically(out, opened.model_dump_json(indent=1).encode() + b"\n", mode=0o600)
        typer.echo(f"written: {out}")
    typer.echo("whoever has the digest can try guesses of small tables against it: give it to the auditor alone")
    return {**opened.model_dump(), "commitment": opened.commitment}


@app.command(
    "verify",
    epilog=examples(
        "consilium audit verify site/site.toml",
        "consilium audit verify hearts --home server --log berlin=berlin-audit.jsonl",
    ),
)
@with_json
def verify(
    what: Annotated[str, typer.Argument(help="At a hospital its site.toml; at the coordinator a run.", metavar="WHAT")],
    runs: Runs = Path("runs"),
    log: Annotated[
        list[str] | None, typer.Option(help="SITE=FILE: a copy of that site's audit.jsonl; may be given again.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="The server's own folder, whose register has the sites' keys.")
    ] = None,
) -> Outcome:
    """Verify the log of everything that a site was asked and that left it: unchanged, uncut, and not put back."""
    from consilium.history.folder import find_entry
    from consilium.privacy.audit_logs import problem_of, read_logs, verify_run, verify_site

    if what.endswith(".toml"):
        findings = [verify_site(Path(what))]
    else:
        findings = verify_run(find_entry(runs, what).folder, logs=read_logs(log or ()), home=home)
    for one in findings:
        state = f"FAIL  {one.problem}" if one.problem else f"PASS  {one.lines} lines"
        typer.echo(f"{one.site}  {state}, {one.heads} heads compared")
    if not findings:
        typer.echo("no site has sent a head of its audit log: they ran in one process, or before there were any")
    error = problem_of(findings)
    listed = [{"site": one.site, "lines": one.lines, "heads": one.heads, "problem": one.problem} for one in findings]
    return Outcome({"logs": listed}, 0 if error is None else error.exit_code)
