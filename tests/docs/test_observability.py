"""Prometheus rules, alerts and Grafana dashboards: valid, as docs/coordinator/metrics.md says, with data in them."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from fake_exporters import PROCESS, SITES, STUDY, VALUES, documented
from paths import ROOT
from prometheus_queries import GRAFANA, result_of, run_all

from consilium.common.host.ports import free_port
from dashboards import queries

PROMETHEUS = ROOT / "docker" / "prometheus"
OF_A_TARGET = {"job", "instance", "site"}
KEYWORDS = {"and", "or", "unless", "bool", "offset"}
CLAUSES = {"by", "without", "on", "ignoring", "group_left", "group_right"}
TOKEN = re.compile(r'"[^"]*"|\d[\w.]*|[a-zA-Z_:][\w:]*|=~|!~|!=|\S')


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(name: str) -> list[dict[str, Any]]:
    """Return the rules of a file, of all groups."""
    return [rule for group in read_yaml(PROMETHEUS / name)["groups"] for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules("rules.yml")}
ALERTS = rules("alerts.yml")
TARGETS = [target for name in queries.NAMES for target in queries.targets_of(name)]
EXPRESSIONS = sorted(
    {queries.fill(target.expr, {"study": STUDY, "site": "berlin"}) for target in TARGETS}
    | set(RECORDED.values())
    | {alert["expr"] for alert in ALERTS}
)


def known_metrics() -> dict[str, set[str]]:
    """Labels of every metric that a query may name."""
    known: dict[str, set[str]] = {}
    for metric in documented():
        labels = {*metric.labels, *(OF_A_TARGET if metric.side == "site" else {"job", "instance"})}
        if metric.kind == "histogram":
            known |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            known[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            known[metric.name] = labels
    for name in RECORDED:
        level = set(name.split(":")[0].split("_"))
        known[name] = level | OF_A_TARGET if level == {"instance"} else level
    known["up"] = OF_A_TARGET
    known |= dict.fromkeys(PROCESS, OF_A_TARGET)
    known["ALERTS"] = {"alertname", "alertstate", "severity", "study", "site", "reason", "model"}
    return known


def between(tokens: list[str], start: int, closing: str) -> list[str]:
    """Return the tokens up to a closing one."""
    return tokens[start : tokens.index(closing, start)]


def inside_next_parentheses(tokens: list[str], start: int) -> list[str]:
    """What follows a clause like `by (site)`, if it is in parentheses; else everything."""
    if start >= len(tokens) or tokens[start] != "(":
        return tokens
    depth = 0
    for end in range(start, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[end], 0)
        if depth == 0:
            return tokens[start + 1 : end]
    raise AssertionError(tokens)


def selectors(tokens: list[str]) -> Iterator[tuple[str, set[str]]]:
    """Yield (metric, labels it is chosen by)."""
    position = 0
    while position < len(tokens):
        token, following = tokens[position], tokens[position + 1] if position + 1 < len(tokens) else ""
        if token in CLAUSES:
            position = tokens.index(")", position) if following == "(" else position
        elif token == "[":
            position = tokens.index("]", position)
        elif re.match(r"[a-zA-Z_:]", token) and token not in KEYWORDS and following not in {"(", "by", "without"}:
            labels: set[str] = set()
            if following == "{":
                inside = between(tokens, position + 2, "}")
                labels = {name for name, sign in pairwise(inside) if sign in {"=", "!=", "=~", "!~"}}
                position = tokens.index("}", position)
            yield token, labels
        position += 1


def clauses(tokens: list[str]) -> Iterator[tuple[set[str], list[str]]]:
    """Yield (labels, the part of the expression whose labels they are)."""
    for position, token in enumerate(tokens[:-1]):
        if token in CLAUSES and tokens[position + 1] == "(":
            labels = {name for name in between(tokens, position + 2, ")") if name != ","}
            after = tokens.index(")", position) + 1
            yield labels, inside_next_parentheses(tokens, after) if token in {"by", "without"} else tokens


def problems(expr: str) -> list[str]:
    """What an expression names that does not exist."""
    known, tokens = known_metrics(), TOKEN.findall(expr)
    found = []
    for metric, labels in selectors(tokens):
        if metric not in known:
            found.append(f"no metric {metric}")
        elif unknown := labels - known[metric]:
            found.append(f"{metric} has no label {sorted(unknown)}")
    for labels, part in clauses(tokens):
        has = set().union(*(known.get(metric, set()) for metric, _ in selectors(part)))
        if labels - has:
            found.append(f"nothing in {' '.join(part)} has a label {sorted(labels - has)}")
    return found


def test_the_fake_exporters_have_every_documented_metric() -> None:
    """What the dashboards are drawn from lacks nothing but the histogram's own series."""
    histograms = {"consilium_round_seconds"}
    assert {metric.name for metric in documented()} - histograms == set(VALUES)


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("consilium_study_rond", "no metric consilium_study_rond"),
        ("sum(rate(consilium_rounds_total[5m]) > 0)", None),
        ('consilium_study_round{site="x"}', "consilium_study_round has no label ['site']"),
        ("max by (site) (consilium_study_round)", "has a label ['site']"),
        ("consilium_study_round - on (planet) consilium_study_rounds", "has a label ['planet']"),
    ],
)
def test_the_check_of_expressions_finds_what_does_not_exist(expr: str, problem: str | None) -> None:
    """The check below would notice a wrong name or label."""
    found = problems(expr)
    assert (problem is None and not found) or (problem is not None and problem in found[0])


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_expression_names_documented_metrics_and_labels(expr: str) -> None:
    """Of dashboards, rules and alerts."""
    assert [] == problems(expr)


# --- dashboards ---------------------------------------------------------------------------------------


def boards() -> dict[str, dict[str, Any]]:
    """Return all dashboards by name."""
    return {name: queries.read_dashboard(name) for name in queries.NAMES}


def test_dashboards_are_what_their_source_makes(tmp_path: Path) -> None:
    """Byte for byte; after a change run `python -m dashboards.build`."""
    subprocess.run([sys.executable, "-m", "dashboards.build", str(tmp_path)], check=True, cwd=ROOT)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in (GRAFANA / "dashboards").iterdir()}


def test_dashboards_can_be_provisioned() -> None:
    """Unique uids, no ids, no inputs that a person would have to fill in, one range and refresh, linked by tag."""
    uids = [board["uid"] for board in boards().values()]
    assert [f"consilium-{name}" for name in queries.NAMES] == uids
    for board in boards().values():
        assert "__inputs" not in board and board.get("id") is None
        assert ["consilium"] == board["tags"] == board["links"][0]["tags"]
        assert ({"from": "now-30m", "to": "now"}, "5s") == (board["time"], board["refresh"])
        for variable in board["templating"]["list"]:
            assert "prometheus" == variable["datasource"]["uid"]
            assert "label_values(" in variable["definition"] == variable["query"]["query"]


@pytest.mark.parametrize("name", queries.NAMES)
def test_every_panel_says_what_it_shows(name: str) -> None:
    """A title of its own and a description for each."""
    board = queries.read_dashboard(name)
    titles = [panel["title"] for panel in queries.panels_of(board)]
    assert len(set(titles)) == len(titles)
    for panel in queries.panels_of(board):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"].endswith("?") and panel["description"].endswith(".")
        assert defaults["unit"] and defaults["thresholds"]["steps"] and defaults["noValue"]
        assert "prometheus" == panel["datasource"]["uid"]
        assert {"prometheus"} == {target["datasource"]["uid"] for target in panel["targets"]}
        if panel["type"] == "timeseries" and "ratio" in panel["targets"][0]["expr"]:
            assert {"min", "max"} <= defaults.keys() or "axisSoftMin" in defaults["custom"]
        if panel["type"] == "timeseries":
            assert "table" == panel["options"]["legend"]["displayMode"]


@pytest.mark.parametrize("name", queries.NAMES)
def test_panels_fill_the_grid_without_overlap(name: str) -> None:
    """No panel lies on another or beyond the edge."""
    taken: set[tuple[int, int]] = set()
    for panel in queries.read_dashboard(name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["w"] > 0 and place["h"] > 0
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert 24 * (1 + max(y for _, y in taken)) == len(taken)


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    """Provisioning names the address and the folder that the containers have."""
    (source,) = read_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert ("prometheus", "http://prometheus:9090", True) == (source["uid"], source["url"], source["isDefault"])
    assert not source["editable"]
    (provider,) = read_yaml(GRAFANA / "provisioning" / "dashboards" / "consilium.yml")["providers"]
    assert ("Consilium", "/var/lib/grafana/dashboards") == (provider["folder"], provider["options"]["path"])


# --- rules --------------------------------------------------------------------------------------------


def test_every_alert_says_who_what_and_what_to_do() -> None:
    """A severity, and annotations that name the site or study."""
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert alert["annotations"].keys() == {"summary", "description"}
        assert re.search(r"\{\{ \$labels\.\w+ \}\}", alert["annotations"]["description"])


def test_every_alert_is_tested_both_ways() -> None:
    """One evaluation in which it fires and one in which it does not."""
    tests = read_yaml(PROMETHEUS / "alerts_test.yml")["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    names = {alert["alert"] for alert in ALERTS}
    assert names == {case["alertname"] for case in cases if case["exp_alerts"]}
    assert names == {case["alertname"] for case in cases if not case["exp_alerts"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not on PATH")
@pytest.mark.parametrize(
    "command",
    ["check config prometheus.yml", "check rules rules.yml alerts.yml", "test rules alerts_test.yml"],
)
def test_promtool_accepts(command: str) -> None:
    """Prometheus' own tool accepts rules, alerts and their tests."""
    done = subprocess.run(["promtool", *command.split()], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


# --- a real Prometheus on fake metrics ----------------------------------------------------------------


def scrape_fake(port: int, folder: Path) -> Path:
    """Write the shipped configuration with the fake exporters in place of the targets, and every second."""
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        for target in job["static_configs"]:
            (address,) = target["targets"]
            page = address.split(":")[0].replace("server-metrics", "server")
            labels = {**target.get("labels", {}), "__metrics_path__": f"/{page}", "instance": address}
            target |= {"targets": [f"127.0.0.1:{port}"], "labels": labels}
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


def wait_until(holds: Callable[[], bool], *, seconds: float) -> None:
    """Wait until something holds; an error on the way is no answer yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (OSError, ValueError):
            pass  # it is not up yet
        assert time.monotonic() < deadline, "Prometheus did not get there in time"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has watched three rounds of the fake federation."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on PATH")
    folder, fake, port = tmp_path_factory.mktemp("prometheus"), free_port(), free_port()
    config, url = scrape_fake(fake, folder), f"http://127.0.0.1:{port}"
    exporters = subprocess.Popen([sys.executable, str(ROOT / "tests" / "fake_exporters.py"), str(fake)])
    with (folder / "log").open("wb") as log:
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: bool(queries.series(url, 'ALERTS{alertstate="firing"}')), seconds=60)
        wait_until(
            lambda: float(queries.series(url, "sum(changes(consilium_study_round[1m]))")[0]["value"][1]) >= 3,
            seconds=60,
        )
        yield url
    finally:
        for process in (prometheus, exporters):
            process.terminate()
            process.wait(timeout=20)


def test_every_query_has_data(base_url: str) -> None:
    """No panel is empty while the fake exporters run."""
    empty = [outcome for outcome in run_all(base_url, study=STUDY, site="berlin") if outcome.num_series == 0]
    assert [] == empty


def test_every_series_can_be_named(base_url: str) -> None:
    """A legend names only labels that the series have; a table only columns that come."""
    for target in TARGETS:
        wanted = set(re.findall(r"\{\{(\w+)\}\}", target.legend))
        for series in result_of(base_url, target, study=STUDY, site="berlin"):
            assert wanted <= series["metric"].keys(), target


def test_every_column_of_a_table_comes(base_url: str) -> None:
    """A table shows all columns that it orders."""
    for name in queries.NAMES:
        for panel in queries.panels_of(queries.read_dashboard(name)):
            if panel["type"] != "table":
                continue
            wanted = set(panel["transformations"][-1]["options"]["indexByName"])
            came = {f"Value #{target['refId']}" for target in panel["targets"]}
            for target in panel["targets"]:
                expr = queries.fill(target["expr"], {"study": STUDY, "site": "berlin"})
                came |= {label for series in queries.series(base_url, expr) for label in series["metric"]}
            assert wanted <= came, panel["title"]


def test_recorded_series_have_the_labels_of_their_level(base_url: str) -> None:
    """A recorded series has the labels that its name says."""
    for name in RECORDED:
        found = queries.series(base_url, name)
        assert found, name
        for series in found:
            level = set(name.split(":")[0].split("_"))
            assert level <= series["metric"].keys() <= level | OF_A_TARGET | {"__name__"}


def test_every_rule_is_evaluated_without_error(base_url: str) -> None:
    """Prometheus has loaded all rules and alerts, and each is healthy."""
    found = [rule for group in queries.ask(base_url, "rules")["groups"] for rule in group["rules"]]
    assert len(RECORDED) + len(ALERTS) == len(found)
    assert {("ok", "")} == {(rule["health"], rule.get("lastError", "")) for rule in found}
    for alert in ALERTS:
        queries.series(base_url, alert["expr"])


def test_a_site_is_named_by_the_scrape_target_alone(base_url: str) -> None:
    """No exported label fights with the target's own."""
    found = queries.series(base_url, "consilium_node_info")
    assert set(SITES) == {series["metric"]["site"] for series in found}
    assert not any("exported_site" in series["metric"] for series in found)


def test_variables_of_the_dashboards_have_values(base_url: str) -> None:
    """Each list of a dashboard's choices has entries."""
    for board in boards().values():
        for variable in board["templating"]["list"]:
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert match is not None
            expr = queries.fill(match[1], {"study": STUDY})
            assert all(match[2] in series["metric"] for series in queries.series(base_url, expr))
            assert queries.series(base_url, expr)


def test_dashboards_can_be_drawn(base_url: str, tmp_path: Path) -> None:
    """The command writes a picture of each dashboard."""
    command = [sys.executable, "-m", "dashboards.draw", base_url, "--study", STUDY, "--site", "berlin"]
    subprocess.run([*command, "--out", str(tmp_path), "--minutes", "1"], check=True, cwd=ROOT)
    assert {f"{name}.png" for name in queries.NAMES} == {path.name for path in tmp_path.iterdir()}
