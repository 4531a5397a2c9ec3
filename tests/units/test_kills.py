"""Processes that are killed while they write, at random moments: nothing is unreadable, and what is left is swept."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from consilium.client.site.state_folder import StateFolder
from consilium.common.events.parts import verify_log
from consilium.common.host.files import sweep
from consilium.common.host.twice import read_twice
from consilium.server.study.checkpoint import load_newest

KILLS = 100
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import consilium.common.events.log as logs
from consilium.client.site.kept import Kept
from consilium.client.site.state_folder import StateFolder
from consilium.common.events.log import EventLog
from consilium.common.events.run import RunWarning
from consilium.common.host.twice import write_twice
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import save_checkpoint

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
logs.PART_BYTES = 20_000
os.fsync = lambda _: None  # no power is cut here
state = StateFolder.of(folder / "site", study="study", run="run", site="berlin")
log = EventLog(folder / "home" / "journal.jsonl", endless=True)

def write(first, last):
    for number in range(first, last):
        array = np.full(5000, number, dtype=np.float64)
        save_checkpoint(folder / "checkpoint.safetensors", ServerState(number, {"w": array}), run="r", study_digest="d")
        state.save(Kept(personal={"w": array}), round_number=number, accepted=number - 1 or None)
        write_twice(folder / "home" / "sites.json", str(number).encode() * 1000)
        log.append([log.line(RunWarning(message=f"{number:06d}"))], durable=False)

began = time.monotonic()
write(1, 11)
seconds, draw, number = (time.monotonic() - began) / 10, random.Random(17), 11
for kill in range(kills):
    ready, said = os.pipe()
    child = os.fork()
    if child == 0:
        write(number, number + 1)
        os.write(said, b"!")
        write(number + 1, 1_000_000)
    if kill % 2:  # in its first round, or after it: on a busy machine a process may wait long for its turn
        os.read(ready, 1)
    os.close(ready)
    os.close(said)
    time.sleep(draw.uniform(0.0, 2.5 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    number += 100
    print(number, flush=True)
"""
"""Writes rounds until it is killed; the next process goes on with later ones, and checks nothing."""


def test_kill_at_any_point_leaves_everything_readable(tmp_path: Path) -> None:
    """A hundred times, one after the other: checkpoint, state, register and journal, each whole and of one round."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(KILLS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    assert KILLS == len(done.stdout.splitlines())
    state = StateFolder.of(tmp_path / "site", study="study", run="run", site="berlin")
    at_server, problems = load_newest(tmp_path / "checkpoint.safetensors", study_digest="d")
    assert () == problems
    np.testing.assert_equal(np.full(5000, at_server.round), at_server.weights["w"])
    rounds = sorted(int(path.stem[-6:]) for path in (tmp_path / "site" / "study" / "run").glob("round-*"))
    kept = [state.load(number) for number in rounds]
    whole = [number for number, each in zip(rounds, kept, strict=True) if each is not None]
    for number, each in zip(rounds, kept, strict=True):
        if each is not None:
            np.testing.assert_equal(np.full(5000, number), each.personal["w"])
    assert whole
    content, problem = read_twice(tmp_path / "home" / "sites.json")
    assert content is not None
    assert content == content[: len(content) // 1000] * 1000
    assert problem == "" or "its copy is used" in problem
    assert verify_log(tmp_path / "home" / "journal.jsonl").lines > KILLS / 5
    assert len(list(tmp_path.rglob("*.tmp"))) == sweep(tmp_path, depth=4) > 0
    assert [] == list(tmp_path.rglob("*.tmp"))
