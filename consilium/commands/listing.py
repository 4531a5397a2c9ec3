"""The command `consilium list`: every algorithm that a study can name."""

from dataclasses import asdict

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command("list", epilog=examples("consilium list"))
@with_json
def list_() -> Document:
    """List every method, strategy, weighting and codec that a study can name, with settings, defaults and paper."""
    from consilium.commands.catalogue import print_sections, sections

    print_sections(console())
    return {
        section.title: [
            {
                **asdict(entry),
                "settings": list(entry.settings),
                "paper": entry.paper or None,
                "link": entry.link or None,
            }
            for entry in section.entries
        ]
        for section in sections()
    }
