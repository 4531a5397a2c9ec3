"""Write the dashboards as JSON: `python -m dashboards.build [folder]`; without one, where Grafana's container reads."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.source import federation, learning, operations, sites

FOLDER = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards"
BOARDS = {module.__name__.rpartition(".")[2]: module for module in (federation, sites, learning, operations)}


def main(folder: Path) -> None:
    """Write every dashboard; the same text each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in BOARDS.items():
        text = json.dumps(module.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
