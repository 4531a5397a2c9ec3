"""The commands `consilium site policy` and `consilium site approve-run`: what a hospital lets a server ask for."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Folder, Settings, examples
from consilium.commands.rows import print_rows
from consilium.commands.scripting import Document, with_json
from consilium.common.errors import ConfigError

app = typer.Typer()


@app.command(
    "policy",
    epilog=examples("consilium site policy", "consilium site policy --explain", "consilium site policy --init"),
)
@with_json
def policy(
    settings: Settings = Path("site/site.toml"),
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each rule why a careful hospital wants it.")
    ] = False,
    init: Annotated[bool, typer.Option("--init", help="Write a policy.toml with the defaults, to be edited.")] = False,
) -> Document:
    """Print this site's policy: every rule, its value, and whether policy.toml or a default says so."""
    from consilium.common.study.load import load_site
    from consilium.privacy.policy import as_json, in_words, init_policy, rules_in_force

    site = load_site(settings)
    if init:
        path = init_policy(settings.parent)
        typer.echo(
            f"made {path} with the defaults\nnext: read it through; it holds from the next plan on, without a restart"
        )
    rows = rules_in_force(settings, site)
    if explain:
        typer.echo("\n".join(in_words(rows)))
    elif not init:
        print_rows(["rule", "value", "from"], [[row.rule, row.shown(), row.source] for row in rows])
    return {"site": site.name, "rules": as_json(rows)}


@app.command(
    "approve-run",
    epilog=examples(
        "consilium site approve-run 20260101-120000-hearts",
        "consilium site approve-run --list",
        "consilium site approve-run --remove 20260101-120000-hearts",
    ),
)
@with_json
def approve_run(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="The run's name, as the refusal has it.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the approved runs, and those that were refused.")] = False,
    remove: Annotated[str | None, typer.Option(help="Withdraw the approval of this run.")] = None,
    folder: Folder = Path("site"),
) -> Document:
    """Let a run be obeyed, where the policy says approve_runs = true; with the study that it asked for."""
    from consilium.client.operations.site_folder import SETTINGS
    from consilium.common.study.load import NO_SITE, load_site

    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"'{folder}' is no site's folder: it has no {SETTINGS}; {NO_SITE}")
    if [run is not None, list_, remove is not None].count(True) != 1:
        raise ConfigError("name the run, or use --list or --remove RUN")
    if run is not None:
        return _approve(folder, run, load_site(folder / SETTINGS).state_dir)
    if remove is not None:
        return _remove(folder, remove)
    return _list(folder, load_site(folder / SETTINGS).state_dir)


def _approve(folder: Path, run: str, state_dir: Path) -> Document:
    from consilium.client.operations.asked_runs import check_run_name, runs_asked
    from consilium.client.privacy.policy.approvals import approve_run

    check_run_name(run)
    asked = runs_asked(state_dir).get(run)
    approval = approve_run(folder, run, study=asked.study if asked is not None else "")
    if asked is None:
        typer.echo(
            f"approved: run '{run}', which has not asked for anything yet; it may begin with any study obeyed here"
        )
    else:
        typer.echo(f"approved: run '{run}' with study {asked.study[:12]}, and no other")
    typer.echo("next: tell the coordinator to start it again; the site need not be started again")
    return {"approved": {"run": run, "study": approval.study or None, "since": approval.since}}


def _remove(folder: Path, run: str) -> Document:
    from consilium.client.privacy.policy.approvals import withdraw_run

    if not withdraw_run(folder, run):
        raise ConfigError(f"run '{run}' is not approved; 'consilium site approve-run --list' shows which are")
    typer.echo(f"no longer approved: {run}")
    return {"removed": run}


def _list(folder: Path, state_dir: Path) -> Document:
    from consilium.client.operations.asked_runs import runs_asked
    from consilium.client.privacy.policy.approvals import approved_runs

    approved, asked = approved_runs(folder), runs_asked(state_dir)
    waiting = [each for each in asked.values() if each.run not in approved]
    rows = [[each.run, each.study[:12] or "any", f"approved {each.since}"] for each in approved.values()]
    rows += [[each.run, each.study[:12], f"refused {each.time}"] for each in waiting]
    if rows:
        print_rows(["run", "study", "state"], rows)
    else:
        typer.echo("no run is approved at this site, and none was refused")
    return {
        "approved": [{"run": each.run, "study": each.study or None, "since": each.since} for each in approved.values()],
        "waiting": [{"run": each.run, "study": each.study, "since": each.time} for each in waiting],
    }
