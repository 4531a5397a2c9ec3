"""Write docs/reference from the code: every setting, algorithm, command, event and exit code.

`python -m docs.generate` after a change; `tests/docs/test_reference.py` compares what is committed, byte for byte.
"""

from pathlib import Path

from consilium.common.study.policy import PolicyConfig
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.schema.schema import FILES, schema_text
from docs.generator.algorithms import REGISTRIES, registry_page
from docs.generator.commands import commands_page
from docs.generator.examples import examples_page
from docs.generator.markdown import NOTE
from docs.generator.records import events_page, exit_codes_page
from docs.generator.settings import settings_page

REFERENCE = Path(__file__).resolve().parent / "reference"


def pages() -> dict[str, str]:
    """Return the text of every page by its file's name, in the order of the index."""
    written = {
        "study.md": settings_page(
            "study.toml",
            "What a study is: written by its coordinator, the same at server and sites. A key that is not on this page "
            "is refused; a key without a default is required.",
            StudyConfig,
        ),
        "site.md": settings_page(
            "site.toml",
            "A site's own settings; they never leave it. Paths are relative to the file. `consilium site init` writes "
            "one with every line explained.",
            SiteConfig,
        ),
        "policy.md": settings_page(
            "policy.toml",
            "A hospital's policy, beside its `site.toml`: no plan goes past it. Without the file these defaults hold "
            "for orders of a server; [the page about it](../hospital/policy.md) says how to use it. `consilium site "
            "policy --init` writes one with every line explained.",
            PolicyConfig,
        ),
        **{f"{registry.page}.md": registry_page(registry) for registry in REGISTRIES},
        "commands.md": commands_page(),
        "events.md": events_page(),
        "exit-codes.md": exit_codes_page(),
        "examples.md": examples_page(),
    }
    index = _index([name.removesuffix(".md") for name in written])
    return {"index.md": index, **written, **{f"{file}.schema.json": schema_text(file, own=False) for file in FILES}}


def _index(names: list[str]) -> str:
    lines = [
        NOTE,
        "# Reference",
        "",
        "Every setting, algorithm, command, event and exit code; written from the code by `python -m docs.generate`.",
        "",
        "```{toctree}",
        ":maxdepth: 1",
        "",
        *names,
        "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every page, and remove pages that nothing writes any more."""
    REFERENCE.mkdir(exist_ok=True)
    written = pages()
    for path in [*REFERENCE.glob("*.md"), *REFERENCE.glob("*.json")]:
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
