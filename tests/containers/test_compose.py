"""The whole federation in containers: `docker compose up` with the real images, on this machine's engine.

Skipped, with the reason, where no engine answers or the images have not been made (`make image`).
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from paths import ROOT

from consilium.common.host.ports import free_port

IMAGES = ("consilium-server:latest", "consilium-client:latest", "prom/prometheus:latest")
HOSPITALS = ("berlin", "lyon", "porto")


def why_not() -> str | None:
    """Return why these tests cannot run here; None where they can."""
    if shutil.which("docker") is None or shutil.which("docker-compose") is None:
        return "no docker or docker-compose on this machine"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return "no Docker engine answers"
    for image in IMAGES:
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode != 0:
            return f"image {image} is not here (make image)"
    return None


REASON = why_not()
pytestmark = [
    pytest.mark.containers,
    pytest.mark.skipif(REASON is not None, reason=f"containers not tested: {REASON}"),
]


@dataclass(frozen=True)
class Federation:
    """A federation in containers, with what was measured while it started."""

    project: str
    ports: dict[str, int]
    first_point_seconds: float
    page_seconds: float

    def compose(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run docker-compose on it."""
        return compose(self.project, self.ports, *arguments)

    def inside(self, service: str, code: str) -> str:
        """Run Python code in a running container and return what it prints."""
        done = subprocess.run(
            ["docker", "exec", f"{self.project}_{service}_1", "python3", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def facts(self, service: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        name = f"{self.project}_{service}_1"
        done = subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def page(self, name: str = "") -> str:
        """Return a page of its results."""
        return fetch(f"http://127.0.0.1:{self.ports['RESULTS_PORT']}/{name}")


def compose(project: str, ports: dict[str, int], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run docker-compose on a project."""
    files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(ROOT / "tests" / "compose.no-grafana.yml"))
    return subprocess.run(
        ["docker-compose", "--project-name", project, *files, *arguments],
        env={**os.environ, **{name: str(port) for name, port in ports.items()}},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def fetch(url: str) -> str:
    """Return what is at an address."""
    with urllib.request.urlopen(url, timeout=5) as response:
        content: bytes = response.read()
        return content.decode()


def query(port: int, expression: str) -> list[dict[str, Any]]:
    """Return the series of a query to Prometheus."""
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.request.quote(expression)}"  # type: ignore[attr-defined]  # quote is there, unlisted
    found: list[dict[str, Any]] = json.loads(fetch(url))["data"]["result"]
    return found


def wait_for(what: str, check: Any, seconds: float) -> None:
    """Wait until a check holds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(1)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """Start a federation in containers, and take it down at the end."""
    project = f"consilium-test-{uuid.uuid4().hex[:8]}"
    ports = {"RESULTS_PORT": free_port(), "PROMETHEUS_PORT": free_port()}
    began = time.monotonic()
    try:
        up = compose(project, ports, "up", "-d")
        assert up.returncode == 0, up.stderr[-3000:]
        prometheus = ports["PROMETHEUS_PORT"]
        wait_for("the first point on a chart", lambda: query(prometheus, "consilium_study_round >= 1"), 240)
        first_point = time.monotonic() - began
        page = f"http://127.0.0.1:{ports['RESULTS_PORT']}/"
        wait_for("the results page", lambda: "Does joining help" in fetch(page), 400)
        yield Federation(project, ports, first_point, time.monotonic() - began)
    finally:
        logs = compose(project, ports, "logs", "--tail=40", "study", "server")
        print(logs.stdout[-6000:])
        compose(project, ports, "down", "-v", "--timeout", "10")


def test_study_completes_and_is_served_as_a_page(federation: Federation) -> None:
    """The page is the report, its data is beside it, and how long it took is printed."""
    print(f"first point after {federation.first_point_seconds:.0f} s, page after {federation.page_seconds:.0f} s")
    report = json.loads(federation.page("report.json"))
    assert ("grpc", True) == (report["transport"], report["tls"])
    assert {"berlin": 1000, "lyon": 500, "porto": 200} == {
        name: site["num_examples"] for name, site in report["sites"].items()
    }
    assert "Does joining help" in federation.page()


REACH = """
import socket
def reach(host, port):
    try:
        socket.create_connection((host, port), 3).close()
        return "open"
    except OSError:
        return "closed"
print(*(reach(*target) for target in TARGETS))
"""


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_hospital_reaches_the_server_and_nothing_else(federation: Federation, hospital: str) -> None:
    """One port open; the server's metrics, Prometheus, the pages and other hospitals closed."""
    other = HOSPITALS[(HOSPITALS.index(hospital) + 1) % 3]
    networks = federation.facts(other)["NetworkSettings"]["Networks"]
    addresses = [facts["IPAddress"] for facts in networks.values()]
    closed = [("server", 9094), ("prometheus", 9090), ("results", 8080), (other, 9095)]
    targets = [("server", 9092), *closed, *((address, 9095) for address in addresses)]
    answers = federation.inside(hospital, f"TARGETS = {targets!r}\n{REACH}").split()
    assert ["open", *["closed"] * (len(targets) - 1)] == answers


@pytest.mark.parametrize("service", ["server", *HOSPITALS])
def test_containers_are_hardened(federation: Federation, service: str) -> None:
    """Not root, nothing writable but volumes and /tmp, no capability, no new privileges; they come back alone."""
    facts = federation.facts(service)
    assert "unless-stopped" == facts["HostConfig"]["RestartPolicy"]["Name"]
    assert "10001:10001" == facts["Config"]["User"]
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert ["ALL"] == facts["HostConfig"]["CapDrop"]
    assert ["no-new-privileges:true"] == facts["HostConfig"]["SecurityOpt"]
    assert {} == {port: bound for port, bound in facts["NetworkSettings"]["Ports"].items() if bound}
    tried = "import os\ntry: open('/opt/x', 'w')\nexcept OSError as error: print(os.getuid(), error.errno)"
    assert "10001 30" == federation.inside(service, tried)


def test_coordinator_needs_no_network(federation: Federation) -> None:
    """The studies were submitted over the server's socket, from a container without network, and ran at the server."""
    facts = federation.facts("study")
    assert ("none", 0) == (facts["HostConfig"]["NetworkMode"], facts["State"]["ExitCode"])
    listed = federation.inside(
        "server",
        "import subprocess; print(subprocess.run(['consilium', 'runs', '--home', '/server'], "
        "capture_output=True, text=True, check=True).stdout)",
    )
    assert ["state", *["finished"] * 4] == [line.split("\t")[1] for line in listed.splitlines()]


def test_client_image_has_neither_pandas_nor_matplotlib(federation: Federation) -> None:
    """What only comparisons and pages need is an extra."""
    code = "import importlib.util as u; print([name for name in ('pandas', 'matplotlib') if u.find_spec(name)])"
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python3", "consilium-client:latest"]
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "[]" == done.stdout.strip()


def test_server_image_has_no_torch(federation: Federation) -> None:
    """The server's process needs none, and its image has none."""
    assert "None" == federation.inside("server", "import importlib.util; print(importlib.util.find_spec('torch'))")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("certificate", "does not accept the certificate"),
        ("ca", "does not trust the server"),
    ],
)
def test_site_that_is_not_who_it_says_is_refused(federation: Federation, change: str, sentence: str) -> None:
    """A site with a foreign certificate, and one that trusts another authority, say so and wait."""
    code = f"""
import pathlib, shutil, subprocess, sys
from consilium.common.host.keys import read_private_key
from cryptography.hazmat.primitives.serialization import Encoding
from consilium.server.operations.authority import make_server_identity, sign_site_certificate
folder, other = pathlib.Path('/tmp/{change}'), pathlib.Path('/tmp/other-{change}')
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
other.mkdir(exist_ok=True)
for name in ('ca.pem', 'site.key', 'site.pem', 'study.pub', 'site.toml'):
    shutil.copyfile('/site/' + name, folder / name)
make_server_identity(other, hosts=['server'])
if {change!r} == 'certificate':
    key = read_private_key(folder / 'site.key').public_key()
    (folder / 'site.pem').write_bytes(sign_site_certificate(other, key, name='berlin').public_bytes(Encoding.PEM))
else:
    shutil.copyfile(other / 'ca.pem', folder / 'ca.pem')
(folder / 'data').mkdir()
text = (folder / 'site.toml').read_text().replace('berlin-metrics:9095', '127.0.0.1:9099')
(folder / 'site.toml').write_text(text)
try:
    command = ['consilium', 'site', 'start', str(folder / 'site.toml')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    print(done.returncode, done.stderr)
except subprocess.TimeoutExpired as waits:
    print('waits', waits.stderr.decode())
"""
    answer = federation.inside("berlin", code)
    assert answer.startswith("waits "), answer
    assert sentence in answer


@pytest.mark.parametrize("opened", ["insecure_channel('server:9092')", "secure_channel('server:9092', TRUST)"])
def test_connection_without_a_certificate_is_refused(federation: Federation, opened: str) -> None:
    """Neither plaintext nor TLS of which one side only shows a certificate gets anywhere."""
    code = f"""
import grpc
TRUST = grpc.ssl_channel_credentials(open('/site/ca.pem', 'rb').read())
try:
    grpc.channel_ready_future(grpc.{opened}).result(timeout=4)
    print('accepted')
except grpc.FutureTimeoutError:
    print('refused')
"""
    assert "refused" == federation.inside("berlin", code)


def test_prometheus_has_both_exporters_and_their_series(federation: Federation) -> None:
    """Server and hospitals are scraped; every site has its series at the server and at home."""
    port = federation.ports["PROMETHEUS_PORT"]
    up = {(item["metric"]["job"], item["metric"].get("site", "")): item["value"][1] for item in query(port, "up")}
    assert {("consilium-server", "")} | {("consilium-site", name) for name in HOSPITALS} == set(up)
    assert {"1"} == set(up.values())
    for series in ("consilium_site_accuracy_ratio", "consilium_site_weight_ratio", "consilium_site_online"):
        assert set(HOSPITALS) == {item["metric"]["site"] for item in query(port, series)}
    assert set(HOSPITALS) == {item["metric"]["site"] for item in query(port, "consilium_node_round")}


def test_every_dashboard_query_gives_series(federation: Federation) -> None:
    """Each target of each dashboard has a series of the demo's first study; those on privacy, of its private one."""
    from prometheus_queries import run_all

    base = f"http://127.0.0.1:{federation.ports['PROMETHEUS_PORT']}"
    results, private = (run_all(base, study=study, site="berlin") for study in ("demo-digits", "demo-digits-private"))
    assert len(results) > 20
    empty = [outcome for outcome in results if outcome.must_have_series and not outcome.num_series]
    assert empty and all("privacy" in outcome.expr for outcome in empty)
    assert {outcome.expr for outcome in empty} <= {outcome.expr for outcome in private if outcome.num_series}


def test_every_rule_and_alert_evaluates(federation: Federation) -> None:
    """Prometheus has loaded all rules and alerts, and each evaluates without an error on the real series."""
    url = f"http://127.0.0.1:{federation.ports['PROMETHEUS_PORT']}/api/v1/rules"
    rules = [rule for group in json.loads(fetch(url))["data"]["groups"] for rule in group["rules"]]
    assert {"alerting", "recording"} == {rule["type"] for rule in rules}
    assert {"ok"} == {rule["health"] for rule in rules}


def test_revoked_site_is_put_out_at_once(federation: Federation) -> None:
    """One command at the server ends the site's program, with a sentence; the other sites stay."""
    revoke = "import subprocess; subprocess.run(['consilium', 'server', 'revoke', 'porto', '--home', '/server'])"
    federation.inside("server", revoke)
    sentence = "has revoked the key of site 'porto'"
    wait_for("the end of the site", lambda: sentence in federation.compose("logs", "porto").stdout, 20)
    assert 0 < federation.facts("porto")["RestartCount"] or 6 == federation.facts("porto")["State"]["ExitCode"]
    sites = federation.inside(
        "server", "import subprocess; subprocess.run(['consilium', 'server', 'sites', '--home', '/server'])"
    )
    assert [["berlin", "online"], ["lyon", "online"]] == [line.split("\t")[:2] for line in sites.splitlines()[1:]]


def test_down_leaves_nothing(federation: Federation) -> None:
    """After `down -v` no container, volume or network is left; runs last, because it ends the federation."""
    assert 0 == federation.compose("down", "-v", "--timeout", "10").returncode
    for kind in (["ps", "-a"], ["volume", "ls"], ["network", "ls"]):
        label = f"label=com.docker.compose.project={federation.project}"
        left = subprocess.run(["docker", *kind, "-q", "--filter", label], capture_output=True, text=True, check=True)
        assert "" == left.stdout
