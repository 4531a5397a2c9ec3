"""Renders a chart with Helm's own engine; a process of its own, since that engine is a Go library.

Reads `{"chart": ..., "values": ...}` from its input and writes `{"manifests": ..., "findings": ..., "error": ...}`.
"""

import json
import sys

import helm_python


def main() -> None:
    """Render and check one chart."""
    asked = json.load(sys.stdin)
    found: dict[str, object] = {"manifests": {}, "error": ""}
    found["findings"] = helm_python.lint(asked["chart"], asked["values"], strict=True)
    try:
        with helm_python.Chart.load(asked["chart"]) as chart:
            chart.validate_schema(asked["values"])
            found["manifests"] = chart.render(asked["values"], name="demo", namespace="study")
    except helm_python.HelmError as error:
        found["error"] = str(error)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
