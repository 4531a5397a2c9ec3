"""The command `consilium demo`: a whole federation on this machine."""

import shlex

import typer

from consilium.commands.documents import run_document
from consilium.commands.parameters import console, examples, with_options
from consilium.commands.scripting import Document, with_json
from consilium.demo.options import DemoOptions

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium demo",
        "consilium demo --rounds 3 --method ditto",
        "consilium demo --data heart-disease --data-dir heart",
    )
)
@with_json
@with_options(DemoOptions)
def demo(options: DemoOptions) -> Document:
    """Run a server and several hospitals on this machine and show whether joining helped each."""
    from consilium.common.host.extras import check_extra

    check_extra("consilium demo", "report")
    from consilium.demo.demo import run_demo
    from consilium.report.terminal import print_report

    out = console()
    report = run_demo(options, out)
    print_report(report, out)
    folder = options.runs / report.run.result.run
    again = shlex.join(["consilium", "compare", str(folder / "hospitals" / "study.toml"), "--methods", "fedper,ditto"])
    out.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    out.print(f"other methods on the same hospitals: {again}", highlight=False, soft_wrap=True)
    return run_document(folder, report)
