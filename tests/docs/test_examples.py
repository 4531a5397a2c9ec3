"""The programs in `examples/` and the command of the committed results as processes, and the studies there."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from paths import ROOT, SHARED

from consilium.client.data.text import read_text
from consilium.common.study.load import load_study
from consilium.common.study.site import TextData
from consilium.data.sources import heart_disease_hospitals
from consilium.demo.scenario import make_sites
from consilium.privacy.visibility import visibility
from consilium.running.in_process import run_in_process

T = TypeVar("T")
HEART = SHARED / "data" / "heart_disease"
PLAYS = SHARED / "data" / "shakespeare" / "tinyshakespeare.txt"
CIFAR10 = SHARED / "data" / "cifar10" / "cifar10_subset_10k_2k.npz"


def printed_by(program: str, *arguments: str) -> list[str]:
    """Run an example to its end and return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / program), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_weighted_mean_of_dictionaries_is_the_one_by_hand() -> None:
    """conv: (1000 * 1.7 + 500 * 3.4 + 200 * 8.5) / 1700 = 5100 / 1700 = 3; head: 1000 / 1700 and 500 / 1700."""
    assert printed_by("weighted_mean.py") == [
        "berlin: 1000 examples, share 0.5882",
        "lyon: 500 examples, share 0.2941",
        "porto: 200 examples, share 0.1176",
        "conv: 3.0",
        "head: [0.5882, 0.2941]",
    ]


def test_fine_tuning_of_a_module_gains_from_its_backbone_and_leaves_it_as_it_is() -> None:
    """The new head is right more often on learned features than on random ones, and nothing else has moved."""
    pretrained, random, backbone = printed_by("transfer_learning.py")
    right = [float(re.search(r"images: ([\d.]+) right", line)[1]) for line in (pretrained, random)]  # type: ignore[index]  # no match: the test fails
    assert right[0] > 0.85
    assert right[0] > right[1] + 0.05
    assert backbone == "backbone unchanged: yes"


@pytest.mark.nightly
def test_meta_learning_adapts_to_every_site() -> None:
    """After five steps on own images each of five sites is right on most test images, far above as received."""
    lines = printed_by("meta_learning.py")
    assert [f"site-{number}" for number in range(5)] == [line.partition(":")[0] for line in lines]
    shares = [[float(share) for share in re.findall(r"0\.\d+|1\.0+", line)] for line in lines]
    received, adapted = zip(*shares, strict=True)
    assert min(adapted) > 0.7
    assert sum(adapted) / 5 > sum(received) / 5 + 0.2


@pytest.mark.nightly
def test_agents_need_a_head_of_their_own_where_the_motor_is_reversed() -> None:
    """One policy for all falls at once there, a personal head holds the pole for longer; at other sites it does too."""
    lines = printed_by("agents.py", "--seeds", "1", "--rounds", "2")
    first, second = lines[1:7], lines[9:]
    names = ["standard", "long-pole", "jupiter", "reversed", "mean"]
    assert [names, names] == [[line.split()[0] for line in table[1:]] for table in (first, second)]
    steps = {line.split()[0]: [int(cell) for cell in re.findall(r" ([+-]?\d+)(?= |$)", line)] for line in first[1:]}
    alone, fedavg, tuned, fedper, gain = steps["reversed"]
    assert fedper - alone == gain
    assert fedavg < 60 < 100 < min(alone, tuned, fedper)
    assert steps["standard"][1] > 100


def test_page_of_agents_shows_what_the_example_printed() -> None:
    """Command and both tables, to the last digit."""
    page = (ROOT / "docs" / "results" / "agents.md").read_text(encoding="utf-8")
    assert f"```text\n{(ROOT / 'benchmarks' / 'results' / 'agents.txt').read_text(encoding='utf-8')}```" in page


@pytest.mark.nightly
@pytest.mark.skipif(not CIFAR10.is_file(), reason="CIFAR-10 does not lie beside the project")
def test_resnet50_sends_its_head_alone_and_learns() -> None:
    """A head of 2048 x 10 weights and 10 biases takes 81,960 bytes; five clients together are right above chance."""
    lines = printed_by("resnet50_cifar10.py", str(CIFAR10))
    assert lines[0] == "backbone: ResNet50, random weights, frozen"
    sent = int(lines[1].split(": ")[1].split()[0].replace(",", ""))
    assert 81_960 <= sent < 83_500
    right, tested = map(int, re.findall(r"\d+", lines[-1])[:2])
    assert tested == 200
    assert right > 35  # chance is 20, with a standard deviation of 4.2


@pytest.mark.skipif(not PLAYS.is_file(), reason="Shakespeare's plays do not lie beside the project")
def test_plays_are_divided_by_speaker_and_the_study_reads_them(tmp_path: Path) -> None:
    """The two who say most are the sites, and their lines are in pieces of the study's length, section by section."""
    lines = printed_by("shakespeare.py", str(PLAYS), str(tmp_path), "--speakers", "2")
    assert ["gloucester: 37,615 characters", "duke-vincentio: 34,094 characters"] == lines[:2]
    study = load_study(tmp_path / "study.toml")
    config = TextData(path=tmp_path / "gloucester" / "data")
    raw = read_text(config, study.task, study.split, site="gloucester")
    begins = range(0, 37_616, 50 * 33)  # of sections, which no piece of 32 and what follows it goes beyond
    assert sum(len(range(begin, min(begin + 50 * 33, 37_616) - 32, 8)) for begin in begins) == len(raw.y)
    assert len(begins) == len(set(raw.patients or ()))


@pytest.mark.e2e
@pytest.mark.nightly
def test_three_parties_find_what_none_has_and_the_worker_sees_sums_only() -> None:
    """The rows follow value = 2 aspirin - codeine + 0.5 morphine + 1 with noise of 0.1: factors are right to 0.05."""
    model, seen = printed_by("secure_worker.py")
    factors = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", model)]
    assert factors == pytest.approx([2.0, -1.0, 0.5, 1.0], abs=0.05)
    assert seen == "what the worker sees of the parties' changes: sums over sites only"


@pytest.mark.skipif(not HEART.is_dir(), reason="the data do not lie beside the project")
@pytest.mark.parametrize("name", ["private", "secure"])
def test_example_study_runs_and_keeps_what_it_promises(name: str, tmp_path: Path) -> None:
    """Four hospitals: each one's ledger stays within epsilon 3; or the coordinator sees sums of updates only."""
    study = load_study(ROOT / "examples" / f"{name}.toml").model_copy(update={"rounds": 2})
    hospitals = heart_disease_hospitals(HEART, tmp_path / "hospitals")
    sites = make_sites(tmp_path / "hospitals", hospitals, "localhost:1", None)
    result = run_in_process(study, sites, tmp_path / "run")
    spent = [of.privacy for of in result.sites.values()]
    if name == "private":
        assert all(one is not None and 0 < one.epsilon <= 3.0 for one in spent)
        assert not any(of.metrics for record in result.rounds for of in record.sites.values())
    else:
        assert spent == [None] * 4
        assert {"sums over sites only"} == {row.seen for row in visibility(study) if "RoundReply.payload" in row.covers}
    assert all(of.test is not None for of in result.sites.values())


@pytest.mark.skipif(not HEART.is_dir(), reason="the data do not lie beside the project")
@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.nightly), signal.SIGKILL])
def test_killed_script_of_results_leaves_no_comparison_running(how: signal.Signals, tmp_path: Path) -> None:
    """The `consilium compare` that the script started ends soon after it, however the script ends."""
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py"), "heart-weightings", "--shared", str(SHARED)]
    command += ["--work", str(tmp_path), "--results", str(tmp_path)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        comparison = wait_for(lambda: children_of(started.pid))[0]
        started.send_signal(how)
        started.wait(timeout=30)
        assert wait_for(lambda: not Path(f"/proc/{comparison}").exists())
    finally:
        started.kill()
        started.wait()


def children_of(process: int) -> list[int]:
    """Return the processes that a process has started and that run."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(look: Callable[[], T], seconds: float = 60.0) -> T:
    """Return what `look` returns as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return seen
