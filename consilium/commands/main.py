"""The `consilium` command line: what a coordinator, a hospital's administrator and a newcomer type."""

import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import click
import typer
from rich.console import Console

import common
from common.errors import ConfigError, ConsiliumError
from consilium.commands import flower as cli_flower
from consilium.commands.data import data_app

if TYPE_CHECKING:
    from common.host.bundle import Bundle

app = typer.Typer(
    name="consilium",
    help="Learn together without sharing data: personalised federated, transfer and meta-learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
server_app = typer.Typer(help="For the coordinator: run the server, approve sites.", no_args_is_help=True)
site_app = typer.Typer(help="For a hospital or device: run the site.", no_args_is_help=True)
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")
app.add_typer(data_app, name="data")
app.add_typer(cli_flower.flower_app, name="flower")
site_app.command("approve-app")(cli_flower.approve_app)

Home = Annotated[Path, typer.Option("--home", help="The server's own folder: certificates, database, secrets.")]
Folder = Annotated[Path, typer.Option("--folder", help="The site's own folder: key, settings, personal models.")]
Settings = Annotated[Path, typer.Argument(help="The site.toml.")]
Address = Annotated[
    str | None, typer.Option("--address", help="host:port as the site reaches the server; default: as it was started.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are written, one folder each.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(common.__version__)
        raise typer.Exit


def _console() -> Console:
    """Return a console; output that goes to a file gets lines wide enough for the table."""
    return Console() if sys.stdout.isatty() else Console(width=130)


@app.command()
def demo(
    data: Annotated[
        Literal["digits", "heart-disease", "images"],
        typer.Option(help="digits are embedded; the others need --data-dir."),
    ] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data, for heart-disease and images.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of training; default: what suits the data.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Personalisation method; default: fine_tune. 'consilium list' tells all.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="How the server makes new weights; default: fedavg.")] = None,
    weighting: Annotated[
        str | None, typer.Option(help="How much each site counts: factors with commas between, e.g. size,loss.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model's name, e.g. small_cnn, squeezenet1_0, mlp.")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="A weights file (.safetensors, .pt, .th).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 42,
    compare: Annotated[bool, typer.Option(help="Also run personal heads and random initial weights.")] = True,
    runs: Runs = Path("runs"),
) -> None:
    """Run a server and several hospitals on this machine and show whether joining helped each."""
    from consilium.demo.demo import run_demo
    from consilium.demo.scenario import DemoOptions
    from consilium.report.report import print_table

    console = _console()
    options = DemoOptions(
        data=data,
        data_dir=data_dir,
        runs=runs,
        rounds=rounds,
        method=method,
        strategy=strategy,
        weighting=weighting,
        model=model,
        pretrained=pretrained,
        seed=seed,
        compare=compare,
    )
    report = run_demo(options, console)
    print_table(report, console)
    folder = runs / report["run"]
    again = shlex.join(["consilium", "compare", str(folder / "hospitals" / "study.toml"), "--methods", "fedper,ditto"])
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"other methods on the same hospitals: {again}", highlight=False, soft_wrap=True)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study.toml.")],
    home: Home = Path("server-home"),
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder from its checkpoint.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and leave; it goes on at the server.")] = False,
) -> None:
    """Run a study on a running server and show whether joining helped each site; Ctrl-C leaves it running."""
    from common.host.files import check_writable
    from common.protocol import study_digest
    from common.study.load import load_study
    from consilium.running.run import new_run_folder, submit_study
    from server.operations.home import ServerHome
    from server.study.checkpoint import load_checkpoint

    config = load_study(study)
    if resume is not None and not (resume / "checkpoint.safetensors").is_file():
        raise ConfigError(f"--resume: '{resume}' has no checkpoint.safetensors, so there is nothing to continue")
    if resume is not None:
        load_checkpoint(resume / "checkpoint.safetensors", study_digest=study_digest(config))
    check_writable(runs, what="the folder for runs")
    folder = resume.resolve() if resume is not None else new_run_folder(runs, config.name)
    seen = submit_study(config, ServerHome(home), folder)
    if detach:
        typer.echo(f"run {folder.name} has begun; follow it with: consilium follow {folder}")
        return
    _follow(folder, home, title=config.name, seen=seen)


@app.command()
def follow(
    folder: Annotated[Path, typer.Argument(help="The run's folder, or its name.")], home: Home = Path("server-home")
) -> None:
    """Follow a run that goes on at the server, from its beginning to its report; Ctrl-C leaves it running."""
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    if not (folder / "events.jsonl").is_file():
        with Control(ServerHome(home)) as control:
            known = {entry.name: entry.folder for entry in control.runs()}
        if folder.name not in known:
            raise ConfigError(f"'{folder}' is no run's folder; 'consilium runs' lists them")
        folder = known[folder.name]
    _follow(folder, home, title=folder.name, seen=0)


def _follow(folder: Path, home: Path, *, title: str, seen: int) -> None:
    try:  # the imports too: they take a second, and the run is going on by now
        from consilium.running.flower_app import is_app_run

        if is_app_run(folder):
            cli_flower.follow_to_end(folder, home)
            return
        from consilium.report.report import print_table
        from consilium.running.live_view import View
        from consilium.running.run import follow_run, save_report
        from server.operations.home import ServerHome

        console = _console()
        result = follow_run(ServerHome(home), folder, View(console, title=title), seen=seen)
    except KeyboardInterrupt:
        cli_flower.say_goes_on(folder)
        raise
    print_table(save_report(folder, result), console)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def runs(home: Home = Path("server-home")) -> None:
    """List the server's runs: name, state, since when, folder."""
    from datetime import datetime

    from server.operations.home import ServerHome
    from server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        for entry in control.runs():
            since = datetime.fromtimestamp(entry.since).isoformat(sep=" ", timespec="seconds")
            detail = f"\t{entry.detail}" if entry.detail else ""
            typer.echo(f"{entry.name}\t{entry.state}\t{since}\t{entry.folder}{detail}")


@app.command()
def stop(
    name: Annotated[str, typer.Argument(help="The run's name, as 'consilium runs' lists it.")],
    home: Home = Path("server-home"),
) -> None:
    """End a run at the server; a study's can be continued later with 'consilium run --resume'."""
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    name = Path(name).name  # a folder is as good
    with Control(ServerHome(home)) as control:
        control.stop(name)
    typer.echo(f"run {name} is stopped")


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="The study.toml.")],
    sites: Annotated[
        Path | None,
        typer.Option(help="Folder with SITE/site.toml or SITE/data for every site; default: the study.toml's folder."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods, e.g. 'fedper,ditto:lam=0.1;x=2'; default: the study's."),
    ] = None,
    strategies: Annotated[str | None, typer.Option(help="Strategies to combine them with.")] = None,
    weightings: Annotated[str | None, typer.Option(help="Weightings: factors, products as size*loss.")] = None,
    learning_rates: Annotated[str | None, typer.Option(help="Learning rates to try, e.g. 0.01,0.1.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of initial weights and order, each for all methods.")] = 3,
    splits: Annotated[int, typer.Option(min=1, help="Random divisions into training, validation and test rows.")] = 1,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per processor core.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What the sentences are about: accuracy (default), auroc, brier; of numbers mae, rmse, r2."),
    ] = None,
    target: Annotated[float | None, typer.Option(help="Validation accuracy to reach; default: FedAvg's.")] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train what validation chose again, on training and validation rows.")
    ] = False,
    keep_rate: Annotated[
        bool,
        typer.Option("--keep-rate", help="Methods of plain SGD keep the rate, in place of the same effective step."),
    ] = False,
    weights: Annotated[Path | None, typer.Option(help="Folder of pretrained weights files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: runs/compare-STUDY.")] = None,
) -> None:
    """Compare methods on the same data, beside honest baselines; tell each site whether joining helps it.

    Runs in this machine's processes, without a server. The same command goes on where it was stopped.
    """
    from common.study.load import load_study
    from consilium.comparison.compare import Options
    from consilium.comparison.compare import compare as run_comparison

    console = _console()
    folder = out or Path("runs") / f"compare-{load_study(study).name}"
    options = Options(
        study=study,
        sites=sites or study.parent,
        out=folder,
        methods=methods,
        strategies=strategies,
        weightings=weightings,
        learning_rates=learning_rates,
        seeds=seeds,
        splits=splits,
        jobs=jobs or os.cpu_count() or 1,
        metric=metric,
        target=target,
        refit=refit,
        keep_rate=keep_rate,
        weights=weights,
    )
    run_comparison(options, console)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command("list")
def list_() -> None:
    """List every method, strategy, weighting and codec that a study can name, with settings, defaults and paper."""
    from consilium.commands.listing import print_sections

    print_sections(_console())


@app.command()
def adapt(
    weights: Annotated[Path, typer.Option(help="The federated model: a run's global.safetensors.")],
    settings: Settings = Path("site/site.toml"),
    study: Annotated[Path | None, typer.Option(help="The study.toml; default: the accepted one.")] = None,
    steps: Annotated[int, typer.Option(help="How many steps of plain SGD on the site's training examples.")] = 100,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of every start; default: the study's for local adaptation, or training.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write adapt.json and adapt.svg into this folder.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the order of examples; default: the study's.")] = None,
) -> None:
    """Adapt a federated model at a site that never took part; show what it gains over starting without it."""
    from common.host.files import check_writable
    from consilium.adaptation.adapt import adapt_site, print_adaptation, write_adaptation

    console = _console()
    if out is not None:
        check_writable(out, what="the folder for the results")
    result = adapt_site(
        settings, weights_file=weights, study_file=study, steps=steps, learning_rate=learning_rate, seed=seed
    )
    print_adaptation(result, console)
    if out is not None:
        write_adaptation(out, result)
        console.print(f"written: {out / 'adapt.json'}, {out / 'adapt.svg'}", highlight=False, soft_wrap=True)


@app.command(hidden=True)
def compose(
    step: Annotated[Literal["prepare", "run"], typer.Argument(help="Which container's step.")],
    runs: Runs = Path("/runs"),
) -> None:
    """Do one step of the containers of 'docker compose up'."""
    from consilium.demo import containers as steps

    console = _console()
    if step == "prepare":
        steps.prepare(console)
    else:
        from consilium.report.report import print_table

        print_table(steps.run(console, runs), console)


@server_app.command("start")
def server_start(
    home: Home = Path("server-home"),
    address: Annotated[str, typer.Option(help="host:port on which sites connect.")] = "0.0.0.0:9092",
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which sites reach the server; goes into its certificate. Repeatable."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="host:port of the pages for monitoring (/metrics, /healthz, /readyz); '' for none.")
    ] = "127.0.0.1:9094",
) -> None:
    """Run the server; runs that its end cut off go on. Stop it with Ctrl-C."""
    from server.operations.home import ServerHome
    from server.operations.start import start_server

    names = list(dict.fromkeys([*(host or []), "localhost", "127.0.0.1"]))
    start_server(ServerHome(home), address=address, hosts=names, metrics=metrics)


@server_app.command("approve")
def server_approve(
    request: Annotated[Path, typer.Argument(help="The site's signing request (site.csr).")],
    name: Annotated[str, typer.Option(help="The site's name, as in its site.toml and the study.toml.")],
    study: Annotated[Path | None, typer.Option(help="A study.toml, so that the site can check its data first.")] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle to write; default: NAME-bundle.json.")] = None,
    address: Address = None,
    home: Home = Path("server-home"),
) -> None:
    """Let a site take part: sign a certificate for its key and name, and write the bundle to send back."""
    from server.operations.bundles import check_handout, make_bundle
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    place = ServerHome(home)
    check_handout(place, name=name, address=address, study=study)
    with Control(place) as control:
        certificate = control.approve(request, name=name)
    _hand_out(make_bundle(place, certificate, name=name, address=address, study=study), out)


@server_app.command("rotate")
def server_rotate(
    request: Annotated[Path, typer.Argument(help="The signing request of the site's new key (site.key.new.csr).")],
    name: Annotated[str, typer.Option(help="The site's name.")],
    out: Annotated[Path | None, typer.Option(help="The bundle to write; default: NAME-bundle.json.")] = None,
    address: Address = None,
    home: Home = Path("server-home"),
) -> None:
    """Replace a site's key: approve the new one, revoke the old one."""
    from server.operations.bundles import check_handout, make_bundle
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    place = ServerHome(home)
    check_handout(place, name=name, address=address)
    with Control(place) as control:
        certificate = control.rotate(request, name=name)
    typer.echo(f"the old key of site '{name}' is revoked")
    _hand_out(make_bundle(place, certificate, name=name, address=address), out)


def _hand_out(bundle: "Bundle", out: Path | None) -> None:
    from common.host.files import write_atomically

    path = out or Path(f"{bundle.site}-bundle.json")
    write_atomically(path, bundle.to_json())
    typer.echo(f"site '{bundle.site}' is approved to join {bundle.server}")
    typer.echo(f"key fingerprint    {bundle.fingerprint}")
    typer.echo(f"bundle             {path}")
    typer.echo(f"bundle check code  {bundle.check_code()}")
    typer.echo(
        "next: compare both with the site over the phone (revoke the key if the fingerprint differs), "
        "then send the bundle; it holds no secret"
    )


@server_app.command("revoke")
def server_revoke(
    name: Annotated[str, typer.Argument(help="The site's name.")], home: Home = Path("server-home")
) -> None:
    """Refuse a site's key from now on, also where it is connected; that key cannot be approved again."""
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.revoke(name)
    typer.echo(f"the key of site '{name}' is revoked; where it was connected, it no longer is")


@server_app.command("sites")
def server_sites(
    home: Home = Path("server-home"),
    revoked: Annotated[bool, typer.Option("--revoked", help="List revoked keys too.")] = False,
) -> None:
    """List the approved sites: name, status, key fingerprint, since when, until when the certificate lasts."""
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        approvals, status = control.approvals(), control.sites()
    for site in sorted(approvals, key=lambda site: (site.name, site.since)):
        if not site.revoked:
            dates = f"{site.since[:19]}Z\t{site.ends[:10]}"
            typer.echo(f"{site.name}\t{status.get(site.name, 'registered')}\t{site.fingerprint}\t{dates}")
        elif revoked:
            typer.echo(f"{site.name}\trevoked\t{site.fingerprint}\t{site.revoked[:19]}Z")


@server_app.command("new-ca")
def server_new_ca(home: Home = Path("server-home")) -> None:
    """Make a new authority that signs certificates from now on; the old one stays trusted until 'retire-ca'."""
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.new_ca()
    typer.echo("a new authority signs certificates from now on; the old one is trusted as well")
    typer.echo(
        "connected sites take it over by themselves, others at their next connection; when all have, "
        "run 'consilium server retire-ca', which names those that have not"
    )


@server_app.command("retire-ca")
def server_retire_ca(
    force: Annotated[
        bool, typer.Option("--force", help="Leave sites behind that have no certificate of the new one yet.")
    ] = False,
    home: Home = Path("server-home"),
) -> None:
    """Trust the newest authority only; sites that have no certificate of it yet keep this from happening."""
    from server.operations.home import ServerHome
    from server.wire.submission import Control

    with Control(ServerHome(home)) as control:
        control.retire_ca(force=force)
    typer.echo("the old authority is not trusted any more; the server has a certificate of the new one")


@site_app.command("init")
def site_init(
    name: Annotated[
        str, typer.Option(envvar="CONSILIUM_NAME", help="The site's name, as agreed with the coordinator.")
    ],
    server: Annotated[
        str, typer.Option(envvar="CONSILIUM_SERVER", help="host:port of the study's server, from the coordinator.")
    ],
    data: Annotated[
        Path | None, typer.Option(envvar="CONSILIUM_DATA", help="Where the data lies; default: 'data' in the folder.")
    ] = None,
    kind: Annotated[
        Literal["images", "table", "arrays"],
        typer.Option(
            envvar="CONSILIUM_KIND", help="A folder of images per class, .csv or .parquet files, or one .npz file."
        ),
    ] = "images",
    metrics: Annotated[
        str | None, typer.Option(envvar="CONSILIUM_METRICS", help="host:port on which to offer metrics.")
    ] = None,
    folder: Folder = Path("site"),
) -> None:
    """Make this site's folder: its key, a request to send, a site.toml to read through, and room for its state."""
    from client.operations.site_folder import SiteFolder, init_site

    told = init_site(SiteFolder(folder), name=name, server=server, kind=kind, data=data, metrics=metrics)
    typer.echo(f"made {folder} with a new key: {told}")
    typer.echo(
        f"next: send {folder / 'site.csr'} to the study's coordinator, who reads this fingerprint back to you over "
        f"the phone and sends a bundle; then run 'consilium site accept BUNDLE'. site.key itself never leaves {folder}."
    )


def _check_has_settings(settings: Path) -> None:
    if not settings.is_file():
        raise ConfigError(
            f"there is no '{settings}'; 'consilium site init' makes it, and this command is typed in the same folder "
            "as that one was"
        )


@site_app.command("accept")
def site_accept(
    bundle: Annotated[Path, typer.Argument(help="The file that the coordinator sent.")],
    folder: Folder = Path("site"),
) -> None:
    """Take over the coordinator's bundle: this site's certificate, the server's address, and the study."""
    from client.operations.site_folder import SiteFolder, accept_bundle
    from common.host.identity import fingerprint, read_private_key
    from common.study.load import load_site

    place = SiteFolder(folder)
    _check_has_settings(place.settings)
    accepted = accept_bundle(place, bundle)
    holds = "this site's certificate and the study" if accepted.study is not None else "this site's certificate"
    typer.echo(f"accepted: server {accepted.server}, {holds}")
    typer.echo(f"bundle check code  {accepted.check_code()}")
    own_key = read_private_key(load_site(place.settings).private_key).public_key()
    then = (
        "stop the site, run 'consilium site rotate-key --activate' and start it again"
        if accepted.fingerprint != fingerprint(own_key)
        else "run 'consilium site check'"
    )
    typer.echo(f"next: ask the coordinator over the phone whether the check code is the same; then {then}")


@site_app.command("check")
def site_check(
    settings: Settings = Path("site/site.toml"),
    study: Annotated[Path | None, typer.Option(help="The study.toml; default: the accepted one.")] = None,
) -> None:
    """Look at everything that could keep this site from taking part, and say how to mend it."""
    from client.operations.doctor import examine, exit_code

    findings = examine(settings, study=study)
    for found in findings:
        fix = f" -> {found.fix}" if found.fix else ""
        typer.echo(f"{found.status}  {found.name:11} {found.message}{fix}")
    code = exit_code(findings)
    failures = sum(found.status == "FAIL" for found in findings)
    typer.echo(f"{failures} to mend" if failures else "next: run 'consilium site start'")
    raise typer.Exit(code)


@site_app.command("rotate-key")
def site_rotate_key(
    activate: Annotated[bool, typer.Option("--activate", help="Use the new key; it must be approved.")] = False,
    folder: Folder = Path("site"),
) -> None:
    """Make a new key beside the old one; with --activate, use it once the coordinator has approved it."""
    from client.operations.site_folder import SiteFolder, activate_new_key, make_new_key

    if activate:
        typer.echo(f"this site's key is now {activate_new_key(SiteFolder(folder))}; start the site again")
        return
    typer.echo(f"made a new key: {make_new_key(SiteFolder(folder))}")
    typer.echo(
        f"next: send {folder / 'site.key.new.csr'} to the coordinator, who reads this fingerprint back to you over the "
        "phone, rotates, and sends a bundle; then run 'consilium site accept BUNDLE', stop the site, run "
        "'consilium site rotate-key --activate' and start it again"
    )


@site_app.command("start")
def site_start(
    settings: Settings = Path("site/site.toml"),
    metrics: Annotated[
        str | None,
        typer.Option(help="host:port of this site's pages for monitoring; default: the settings' metrics_address."),
    ] = None,
) -> None:
    """Run this site until it is stopped with Ctrl-C; it answers its server's studies, and waits where that is gone."""
    from client.node import start_site

    _check_has_settings(settings)
    start_site(settings, metrics=metrics)


_LEFT_OUT = frozenset({"torch", "torchvision", "sklearn", "scipy", "pandas", "PIL"})
"""Packages of which the server's image has not every one."""


def main() -> NoReturn:
    """Run the command line; a ConsiliumError becomes a sentence on stderr and its exit code."""
    from common.host.logs import start_log
    from common.host.parents import follow_parent

    # Before anything of flwr or gRPC is imported: they read these once. gRPC has a line for every stranger who knocks.
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    start_log()
    for noisy in ("httpx", "flwr", "alembic", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    follow_parent()
    if sys.argv[1:2] in (["demo"], ["run"], ["follow"], ["flower"]):
        # Also where a shell in the background has told its children to ignore Ctrl-C.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConsiliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _LEFT_OUT:
            raise
        print(
            f"ConfigError: this installation has no '{package}', which this command needs; the server's image "
            "leaves out what only sites and comparisons use: run it where consilium was installed with pip",
            file=sys.stderr,
        )
        sys.exit(ConfigError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("stopped", file=sys.stderr)
        code = 130
    if code == 130:  # a '-m' program whose import met Ctrl-C ends by the signal, even where that was handled
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    sys.exit(code or 0)
