"""The steps of the containers of `docker compose up`: prepare once, run the studies, show the page.

The same hospitals and studies as `consilium demo` (`scenario.py`); each step is a container of its own,
and what they share are volumes: `/server` (the server's home with its socket), `/exchange` (the studies), `/runs` and
one volume per hospital, which only `init` and that hospital ever mount.
"""

import html
import json
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.host.signing_requests import read_signing_request
from consilium.common.study.study import StudyConfig
from consilium.demo.options import DemoOptions
from consilium.demo.scenario import (
    Studies,
    certify,
    make_federation,
    make_sites,
    make_studies,
    run_studies,
    weights_file,
)
from consilium.server.operations.home import ServerHome
from consilium.server.wire.registry import Registry

if TYPE_CHECKING:
    from consilium.report.report import Report

SERVER, EXCHANGE, HOSPITALS, PUBLIC = Path("/server"), Path("/exchange"), Path("/hospitals"), Path("/public")
GRAFANA_PASSWORD = Path("/grafana-secret/admin-password")
ADDRESS = "server:9092"
METRICS = "{site}-metrics:9095"
"""Where each hospital offers its metrics."""


def prepare(console: Console) -> None:
    """Make CA, certificates, keys, every hospital's data and settings, and the studies; does nothing the second time.

    Raises:
        StateError: a volume cannot be written.
    """
    done = EXCHANGE / "studies.json"
    if done.exists():
        console.print("everything has been prepared before")
        return
    home = ServerHome(SERVER)
    home.prepare(["server", "localhost", "127.0.0.1"])
    options = DemoOptions(cache=Path("/tmp/cache"))
    federation = make_federation(options, HOSPITALS)
    weights = weights_file(options, federation, console)
    studies = make_studies(options, federation, weights)
    sites = make_sites(HOSPITALS, federation, ADDRESS, weights, metrics=METRICS)
    registry = Registry(SERVER)  # the server is not started before this step is done
    certify(sites, home, lambda request, name: registry.approve(read_signing_request(request), name=name))
    password = os.environ.get("GRAFANA_ADMIN_PASSWORD") or secrets.token_urlsafe(18)
    write_atomically(GRAFANA_PASSWORD, password.encode())  # Grafana runs as another user
    content = {
        "title": studies.title,
        "studies": {
            label: study.model_dump(mode="json") for label, study in {"": studies.main, **studies.others}.items()
        },
    }
    _publish("index.html", _waiting_page(studies.title).encode())
    write_atomically(done, json.dumps(content).encode())
    console.print(f"prepared {', '.join(sites)}")


def run(console: Console, runs: Path) -> "Report":
    """Run the studies and publish the report as `/public/index.html`; return the report.

    Raises:
        ConsiliumError: what ended a run.
    """
    studies = _read_studies()
    folder = runs / time.strftime("%Y%m%d-%H%M%S-digits")
    report = run_studies(studies, ServerHome(SERVER), folder, console)
    for name in ("report.json", "rounds.csv"):
        _publish(name, (folder / name).read_bytes())
    _publish("index.html", (folder / "report.html").read_bytes())
    return report


def _read_studies() -> Studies:
    try:
        content = json.loads((EXCHANGE / "studies.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("nothing has been prepared; is this running inside 'docker compose up'?") from error
    studies = {label: StudyConfig.model_validate(values) for label, values in content["studies"].items()}
    main = studies.pop("")
    return Studies(main, studies, content["title"])


def _publish(name: str, content: bytes) -> None:
    write_atomically(PUBLIC / name, content)


def _waiting_page(title: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="3">'
        '<meta name="viewport" content="width=device-width"><title>consilium: running</title>'
        '<body style="font:16px system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem;color-scheme:light dark">'
        f"<h1>The study is running</h1><p>{html.escape(title)}. This page becomes the report when it is done; "
        "Grafana shows the rounds on port 3000, Prometheus on port 9090.</p>"
    )
