"""End to end: real processes, real gRPC, certificates on both sides, on this machine's loopback interface."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import call, until

from consilium.client.data.image_files import labelled_files
from consilium.common.host.keys import make_site_key
from consilium.common.host.ports import free_port
from consilium.common.host.signing_requests import make_signing_request
from consilium.common.model import read_record
from consilium.common.study.load import load_study
from consilium.common.study.load import write_site as write_settings
from consilium.common.study.site import ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import find_sites
from consilium.serving.own_rows import own_rows_of

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-P", "-m", "consilium"]
MARK = "CONSILIUM_TEST_MARK"


def environment(mark: str) -> dict[str, str]:
    """Return an environment with a mark by which its processes are recognised."""
    return {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def left_behind(mark: str) -> list[str]:
    """Command lines of running processes that a test with this mark started, directly or not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return found


def wait_until_none_is_left(mark: str, seconds: float = 15) -> list[str]:
    """Return the processes that are still there after some seconds."""
    deadline = time.monotonic() + seconds
    while (running := left_behind(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return running


def run(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment("none"),
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@dataclass(frozen=True)
class Demo:
    """What a demonstration has left."""

    folder: Path
    output: str
    left: list[str]

    @property
    def report(self) -> dict[str, object]:
        """Return its report."""
        content: dict[str, object] = json.loads((self.folder / "report.json").read_text())
        return content


def run_demo(runs: Path) -> Demo:
    """Run a demonstration of two rounds."""
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [*COMMAND, "demo", "--rounds", "2", "--no-compare", "--runs", str(runs)],
        env=environment(mark),
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = runs.iterdir()
    return Demo(folder, done.stdout, left_behind(mark))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run one demonstration for several tests."""
    return run_demo(tmp_path_factory.mktemp("first"))


def test_demo_runs_over_grpc_with_tls_in_separate_processes(demo: Demo) -> None:
    """The report says which transport was used, and every hospital answered from a process of its own."""
    report = demo.report
    assert ("grpc", True, 42) == (report["transport"], report["tls"], report["seed"])
    sites = report["sites"]
    assert isinstance(sites, dict)
    assert {"berlin": 1000, "lyon": 500, "porto": 200} == {name: site["num_examples"] for name, site in sites.items()}
    assert 3 == len({site["pid"] for site in sites.values()} - {os.getpid()})
    for site in sites.values():
        assert {"majority", "local", "global", "personal"} == set(site["metrics"])


def test_demo_reports_every_round(demo: Demo) -> None:
    """Each round has its time, its bytes in both directions, and who was asked, answered and accepted."""
    rounds = demo.report["rounds"]
    assert isinstance(rounds, list)
    assert [1, 2] == [record["round"] for record in rounds]
    for record in rounds:
        assert ["berlin", "lyon", "porto"] == record["asked"] == record["answered"] == record["accepted"]
        assert {} == record["rejected"]
        assert record["seconds"] > 0
        assert min(record["bytes_up"], record["bytes_down"]) > 100_000


def test_demo_prints_one_plain_line_per_round_without_a_terminal(demo: Demo) -> None:
    """Output that goes to a file has a line per round and the table at the end."""
    assert 1 == demo.output.count("round 1/2")
    assert 1 == demo.output.count("round 2/2")
    assert "personal" in demo.output
    assert "worst" in demo.output


@pytest.mark.nightly
def test_demo_leaves_a_study_with_which_methods_can_be_compared(demo: Demo, tmp_path: Path) -> None:
    """The same study in process, on the hospitals' own settings, has the numbers that the separate processes told."""
    study = load_study(demo.folder / "hospitals" / "study.toml")
    assert f"consilium compare {demo.folder / 'hospitals' / 'study.toml'}" in demo.output
    files = find_sites(demo.folder / "hospitals", study, weights_dir=None)
    found = run_cell(make_cell("again", study, seed=0, split=0), files, tmp_path, "key")
    sites = demo.report["sites"]
    assert isinstance(sites, dict)
    for name, site in sites.items():
        for model in ("personal", "local", "global", "majority"):
            count = site["test"]["global_" if model == "global" else model]
            assert found.sites[name].metrics[model]["accuracy"] == pytest.approx(count / site["test"]["num_test"])


def test_demo_leaves_no_process_behind(demo: Demo) -> None:
    """When the demo has ended, everything it started has ended too."""
    assert [] == demo.left


def test_demo_keeps_keys_to_their_owner(demo: Demo) -> None:
    """Private keys and secrets are readable by the owner only, and so are the folders around them."""
    secrets = [*demo.folder.rglob("*.key"), *demo.folder.rglob("sites.json"), *demo.folder.rglob("runs.json")]
    expected = {"ca.key", "commitment.key", "server.key", "study.key", "site.key", "sites.json", "runs.json"}
    assert expected == {path.name for path in secrets}
    assert {0o600} == {path.stat().st_mode & 0o777 for path in secrets}
    assert 0o700 == demo.folder.stat().st_mode & 0o777


def test_demo_keeps_personal_weights_in_their_own_hospital(demo: Demo) -> None:
    """Personal weights lie below the state folder of the hospital they belong to and nowhere else."""
    personal = {
        path.relative_to(demo.folder).parts[:3] for path in demo.folder.rglob("models/personal/weights.safetensors")
    }
    assert {("hospitals", name, "state") for name in ("berlin", "lyon", "porto")} == personal


def test_hospital_predicts_new_images_with_one_command(demo: Demo, tmp_path: Path) -> None:
    """Porto's 60 test images as new ones in a flat folder, without labels: the accuracy is that of the report."""
    porto, new = demo.folder / "hospitals" / "porto", tmp_path / "new"
    study, (folder,) = load_study(demo.folder / "hospitals" / "study.toml"), porto.rglob("models/personal")
    assert isinstance(study.task, ImageTask)
    files = labelled_files(ImageFolderData(path=porto / "data"), study.task, study.split, site="porto").files
    new.mkdir()
    truth = {}
    for place in own_rows_of(porto / "site.toml", read_record(folder), part="test", option="--test-rows").inputs.names:
        source = files[int(place)].path
        truth[source.name] = source.parent.name
        shutil.copyfile(source, new / source.name)
    shutil.copytree(folder, tmp_path / "model")
    done = call("predict", "model", "new", "--out", "predictions.csv", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    with (tmp_path / "predictions.csv").open(newline="") as file:
        said = {line["file"]: line["class"] for line in csv.DictReader(file)}
    assert (60, truth.keys()) == (len(said), said.keys())
    sites = demo.report["sites"]
    assert isinstance(sites, dict)
    accuracy = sites["porto"]["metrics"]["personal"]
    assert sum(said[name] == of for name, of in truth.items()) / 60 == accuracy
    measured = call(
        "evaluate", str(porto), "--test-rows", str(porto / "site.toml"), "--out", ".", "--json", cwd=tmp_path
    )
    assert accuracy == json.loads(measured.stdout)["metrics"][0]["value"]


@pytest.mark.nightly
def test_demo_with_the_same_seed_gives_the_same_weights(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A second run from the same seed ends with the same bytes."""
    again = run_demo(tmp_path_factory.mktemp("second"))
    assert (demo.folder / "model/weights.safetensors").read_bytes() == (
        again.folder / "model/weights.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.nightly)])
def test_demo_that_is_stopped_leaves_no_process_behind(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C ends every process and exits with 130; so does even a kill, a few seconds later."""
    mark = uuid.uuid4().hex
    started = subprocess.Popen(
        [*COMMAND, "demo", "--rounds", "200", "--no-compare", "--runs", str(tmp_path)],
        env=environment(mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout is not None
    with started.stdout as output:
        assert any("round 1/200" in line for line in output)
        started.send_signal(number)
        rest = output.read()
    code = started.wait(timeout=60)
    assert [] == wait_until_none_is_left(mark)
    if number is signal.SIGINT:
        assert 130 == code
        assert "Traceback" not in rest


# --- what goes wrong, with a real server ------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server that runs as a process."""

    home: Path
    address: str
    metrics: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server for all tests of this file."""
    folder = tmp_path_factory.mktemp("server")
    found = Server(folder / "home", f"localhost:{free_port()}", f"127.0.0.1:{free_port()}")
    listening = found.address.replace("localhost", "127.0.0.1")
    command = ["server", "start", "--home", str(found.home), "--address", listening]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, *command, "--metrics", found.metrics],
            env=environment("server"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    until(lambda: process.poll() is not None or (found.home / "server.json").exists())
    assert process.poll() is None, (folder / "server.log").read_text()
    yield found
    process.terminate()
    assert 0 == process.wait(timeout=30)


def write_site(folder: Path, server: str, home: Path) -> Path:
    """Write a site's folder as it is before its request is approved, with the server's authorities and study key."""
    folder.mkdir(parents=True, exist_ok=True)
    make_site_key(folder / "site.key", comment="berlin")
    make_signing_request(folder / "site.key", name="berlin")
    for name in ("ca.pem", "study.pub"):
        (folder / name).write_bytes((home / name).read_bytes())
    values = {"name": "berlin", "server": server, "ca_certificate": "ca.pem", "private_key": "site.key"}
    data = {"kind": "images", "path": "data"}
    write_settings(folder / "site.toml", values | {"state_dir": "state", "data": data})
    return folder / "site.toml"


def write_study(path: Path, **values: object) -> Path:
    """Write a study.toml with some settings."""
    lines = {"name": "demo", "sites": ["berlin"], "join_timeout_seconds": 2.0} | values
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
    path.write_text(f'{text}\n[task]\nkind = "images"\nclasses = ["a", "b"]\n')
    return path


def test_site_without_a_certificate_is_told_so(server: Server, tmp_path: Path) -> None:
    """A site that was not approved has no certificate: exit code 3 and what writes it."""
    done = run("site", "start", str(write_site(tmp_path, server.address, server.home)))
    assert 3 == done.returncode, done.stderr
    assert "site.pem" in done.stderr
    assert "consilium site accept" in done.stderr
    assert "Traceback" not in done.stderr


def test_server_on_a_port_in_use_is_told_so(server: Server, tmp_path: Path) -> None:
    """A port that something else uses gives exit code 11 and names the port."""
    done = run("server", "start", "--address", server.address, "--home", str(tmp_path))
    assert 11 == done.returncode, done.stderr
    assert server.address.rpartition(":")[2] in done.stderr


def test_run_names_the_hospital_that_never_comes(server: Server, tmp_path: Path) -> None:
    """The wait is bounded; then exit code 7 and who is missing."""
    study = write_study(tmp_path / "study.toml", sites=["berlin", "lyon"], pause_limit_seconds=0)
    done = run("run", str(study), "--home", str(server.home), "--runs", str(tmp_path / "runs"))
    assert 7 == done.returncode, done.stdout + done.stderr
    assert "berlin, lyon" in done.stderr
    assert "connected: none" in done.stderr


def test_run_without_a_server_is_told_so(tmp_path: Path) -> None:
    """No server in the folder gives exit code 6 and the command that starts one."""
    study = write_study(tmp_path / "study.toml")
    done = call("run", str(study), "--home", str(tmp_path), "--runs", str(tmp_path), cwd=tmp_path)
    assert 6 == done.returncode, done.stderr
    assert "consilium server start" in done.stderr


def test_run_with_an_unknown_setting_is_told_so(tmp_path: Path) -> None:
    """An unknown key in the study gives exit code 3 and names key and file."""
    study = write_study(tmp_path / "study.toml", roundz=3)
    done = call("run", str(study), "--home", str(tmp_path), cwd=tmp_path)
    assert 3 == done.returncode, done.stderr
    assert "roundz: unknown key" in done.stderr
    assert "study.toml" in done.stderr


def test_approve_refuses_a_key_twice(server: Server, tmp_path: Path) -> None:
    """Approving works once; the same key under another name gives exit code 3 and a sentence."""
    make_site_key(tmp_path / "site.key", comment="porto")
    request = make_signing_request(tmp_path / "site.key", name="porto")
    arguments = ["--home", str(server.home), "--out", str(tmp_path / "bundle.json")]
    assert 0 == call("server", "approve", str(request), "--name", "porto", *arguments, cwd=tmp_path).returncode
    request = make_signing_request(tmp_path / "site.key", name="lisboa")
    again = call("server", "approve", str(request), "--name", "lisboa", *arguments, cwd=tmp_path)
    assert 3 == again.returncode, again.stderr
    assert "refused" in again.stderr
    assert "porto" in call("server", "sites", "--home", str(server.home), cwd=tmp_path).stdout


# --- monitoring -------------------------------------------------------------------------------------


def page(url: str) -> tuple[int, str]:
    """Status and text; 0 where nothing listens."""
    try:
        with urllib.request.urlopen(f"http://{url}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_for_line(url: str, line: str, seconds: float = 60) -> None:
    """Wait until a page has a line."""
    until(lambda: line in page(url)[1].splitlines(), seconds)


def test_monitoring_sees_a_site_come_and_go(server: Server, tmp_path: Path) -> None:
    """Server and site say that they are up and ready; a site that stops is no longer online, but was seen."""
    settings = write_site(tmp_path, server.address, server.home)
    settings.write_text(settings.read_text().replace("berlin", "madrid"))
    request = make_signing_request(tmp_path / "site.key", name="madrid")
    approve = ["server", "approve", str(request), "--name", "madrid", "--home", str(server.home)]
    approved = call(*approve, "--out", "bundle.json", "--address", server.address, cwd=tmp_path)
    assert 0 == approved.returncode, approved.stderr
    assert 0 == call("site", "accept", "bundle.json", "--folder", ".", cwd=tmp_path).returncode
    wait_for_line(f"{server.metrics}/metrics", 'consilium_site_online{site="madrid"} 0.0')
    assert "consilium_site_last_seen_timestamp_seconds{" not in page(f"{server.metrics}/metrics")[1]
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "site.log").open("wb") as log:
        site = subprocess.Popen(
            [*COMMAND, "site", "start", str(settings), "--metrics", address],
            env=environment("site"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_line(f"{address}/readyz", "ready")
        assert 200 == page(f"{address}/healthz")[0]
        assert 'consilium_node_info{site="madrid"' in page(f"{address}/metrics")[1]
        wait_for_line(f"{server.metrics}/metrics", 'consilium_site_online{site="madrid"} 1.0')
    finally:
        site.terminate()
        site.wait(timeout=30)
    wait_for_line(f"{server.metrics}/metrics", 'consilium_site_online{site="madrid"} 0.0')
    text = page(f"{server.metrics}/metrics")[1]
    (seen,) = (line for line in text.splitlines() if line.startswith("consilium_site_last_seen_timestamp_seconds{"))
    assert abs(time.time() - float(seen.split()[1])) < 60
    assert "process_resident_memory_bytes" in text
    assert (200, 200) == tuple(page(f"{server.metrics}/{name}")[0] for name in ("healthz", "readyz"))
