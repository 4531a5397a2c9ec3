"""The command `consilium compare`: methods on the same data, in this machine's processes."""

import typer

from consilium.commands.parameters import console, examples, with_options
from consilium.commands.scripting import Document, with_json
from consilium.comparison.options import CompareOptions

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium compare study.toml --methods fedper,ditto",
        "consilium compare study.toml --methods 'ditto:lam=0.1' --seeds 5 --out ditto",
        "consilium compare study.toml --learning-rates 0.01,0.05 --refit",
    )
)
@with_json
@with_options(CompareOptions)
def compare(options: CompareOptions) -> Document:
    """Compare methods on the same data with honest baselines, and say for each site whether joining helps it.

    Runs in this machine's processes, or on a Ray cluster, without a server. The same command continues where it was
    stopped.
    """
    from consilium.common.host.extras import check_extra

    check_extra("consilium compare", "study")
    if options.ray is not None:
        check_extra("consilium compare --ray", "ray")
    from consilium.comparison.compare import compare as run_comparison

    out = console()
    report = run_comparison(options, out)
    out.print(f"report: {options.folder / 'report.html'}", highlight=False, soft_wrap=True)
    return {**report.as_json(), "folder": options.folder, "report": options.folder / "report.html"}
