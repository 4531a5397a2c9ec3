"""Divide Shakespeare's plays by speaker, as keyboards divide people, and write a study that learns the next character.

Run: `python examples/shakespeare.py tinyshakespeare.txt OUT [--speakers 5]`, then
`consilium compare OUT/study.toml --methods fedavg,fedper,fine_tune --seeds 1`. A speaker's lines are one site's
`speech.txt`; none of them leaves it.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

STUDY = """\
name = "shakespeare"
sites = [{sites}]
rounds = 10

[task]
kind = "text"
next = "character"
length = 32
step = 8

[model]
name = "text_transformer"
settings = {{ vocabulary = 97, width = 64, layers = 2, heads = 4, pooling = "last" }}

[training]
optimiser = "adam"
learning_rate = 0.003
batch_size = 64
epochs = 1
"""


def speeches(text: str) -> dict[str, str]:
    """Return what each speaker says, in the order of the plays: blocks begin with a name and a colon."""
    said = defaultdict[str, list[str]](list)
    for block in text.split("\n\n"):
        name, _, lines = block.partition(":\n")
        if lines:
            said[name.strip()].append(lines.strip())
    return {name: "\n".join(parts) for name, parts in said.items()}


def main() -> None:
    """Write a folder for each of the speakers who say most, and the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--speakers", type=int, default=5)
    options = parser.parse_args()
    said = speeches(options.plays.read_text(encoding="utf-8"))
    most = sorted(said, key=lambda name: -len(said[name]))[: options.speakers]
    sites = {re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"): said[name] for name in most}
    for site, text in sites.items():
        folder = options.out / site / "data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "speech.txt").write_text(text + "\n", encoding="utf-8")
        print(f"{site}: {len(text):,} characters")
    names = ", ".join(f'"{site}"' for site in sites)
    (options.out / "study.toml").write_text(STUDY.format(sites=names), encoding="utf-8")
    print(f"next: consilium compare {options.out / 'study.toml'} --methods fedavg,fedper,fine_tune --seeds 1")


if __name__ == "__main__":
    main()
