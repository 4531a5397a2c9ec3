"""The command `consilium simulate`: users by the hundred thousand, of whom a cohort trains in each round."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Runs, Study, console, examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium simulate homes/study.toml --data homes/users",
        "consilium simulate study.toml --data users.npz --users 9999 --cohort 100",
        "consilium simulate study.toml --data users.parquet --no-privacy",
        "consilium simulate study.toml --data users.npz --resume runs/phones",
    )
)
@with_json
def simulate(
    study: Study,
    data: Annotated[
        Path, typer.Option(help="The users: a folder of arrays, an .npz file, or a Parquet file with a user column.")
    ],
    users: Annotated[
        int | None, typer.Option(min=1, help="How many of them take part, the first; default: the study's, or all.")
    ] = None,
    cohort: Annotated[int | None, typer.Option(min=1, help="How many train in a round; default: the study's.")] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="Average updates without noise, so that nothing hides a user.")
    ] = False,
    runs: Runs = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder from its checkpoint.")] = None,
) -> Document:
    """Simulate a study of phones or homes: a cohort a round, a virtual clock, noise that hides each user.

    What hides a user, who answered and how models do by group and over users is printed, and in report.html.
    """
    from consilium.common.errors import ConfigError
    from consilium.common.host.extras import check_extra

    check_extra("the page of a simulation", "report")
    from consilium.common.study.load import load_device_study
    from consilium.devices.page import write_page
    from consilium.devices.simulate import PAGE, document_of, is_begun
    from consilium.devices.terminal import print_result, run_with_progress
    from consilium.running.run import new_run_folder

    private = False if no_privacy else None
    config = load_device_study(study, users=users, cohort=cohort, private=private)
    if resume is not None and not is_begun(resume):
        raise ConfigError(f"--resume: '{resume}' has no checkpoint.safetensors, so there is nothing to continue")
    folder, screen = resume or new_run_folder(runs, config.name), console()
    result = run_with_progress(config, data, folder, screen)
    write_page(folder, result)
    print_result(result, screen)
    screen.print(f"report: {folder / PAGE}", highlight=False, soft_wrap=True)
    return document_of(result, folder)
