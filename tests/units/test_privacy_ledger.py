"""The privacy ledger of a site: nothing leaves that is not in it, and none of it can be taken back."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from consilium.client.privacy.ledger import LEDGER, Limit, PrivacyLedger, Spent
from consilium.client.privacy.marks import ANCHOR, RUN_HEAD
from consilium.common.errors import PrivacyBudgetSpent, StateError
from consilium.common.privacy.accounting import Charge, epsilon_of

FREE = Limit(1e-4)
"""Counts, and refuses nothing."""
STEP = Charge("sgd", 4.0, 0.25, 5)
KILLS = 100
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from consilium.client.privacy.ledger import Limit, PrivacyLedger
from consilium.common.privacy.accounting import Charge

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
handed = folder / "handed-on"

def answer(rounds=1_000_000):
    ledger = PrivacyLedger.open(folder, "berlin")
    on = os.open(handed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for round in range(1, rounds):
        ledger.charge([Charge("sgd", 4.0, 0.25, 5)], study="heart", run="one", round=round, data="ab",
                      what="weights", limit=Limit(1e-4))
        os.write(on, b"x")

(folder / "heart" / "one").mkdir(parents=True)
began = time.monotonic()
answer(11)
seconds, draw = (time.monotonic() - began) / 10, random.Random(17)
for _ in range(kills):
    child = os.fork()
    if child == 0:
        answer()
    time.sleep(draw.uniform(0.0, 8 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    spent = len(PrivacyLedger.open(folder, "berlin").entries())
    print(handed.stat().st_size, spent, flush=True)
"""
"""Answers until it is killed, at random points; after each, how often it handed something on, and was charged."""


def charge(ledger: PrivacyLedger, *charges: Charge, round: int = 1, limit: Limit = FREE, **changes: str) -> Spent:
    """Charge what a round draws; by default in the first round of a run of study `heart`."""
    named = {"study": "heart", "run": "one", "data": "ab", "what": "the change of the shared weights", **changes}
    return ledger.charge(charges or (STEP,), round=round, limit=limit, **named)


def filled(folder: Path, *, rounds: int = 3) -> PrivacyLedger:
    """Return a ledger of so many rounds of one run, whose folder is there."""
    (folder / "heart" / "one").mkdir(parents=True, exist_ok=True)
    ledger = PrivacyLedger.open(folder, "berlin", server="example.org:9092")
    for number in range(1, rounds + 1):
        charge(ledger, round=number)
    return ledger


def test_what_was_charged_is_there_after_a_restart(tmp_path: Path) -> None:
    """Another process reads the same lines, each with what, when, for whom and for which study."""
    filled(tmp_path)
    entries = PrivacyLedger.open(tmp_path, "berlin").entries()
    assert [1, 2, 3] == [entry.round for entry in entries]
    last = entries[-1]
    assert ("heart", "one", "ab", "example.org:9092", 1e-4) == (
        last.study,
        last.run,
        last.data,
        last.server,
        last.delta,
    )
    assert (STEP,) == last.drawn
    assert last.time.endswith("+00:00")


def test_a_folder_without_ledger_has_spent_nothing(tmp_path: Path) -> None:
    """Reading makes no file: a site that never took part in a private study has none."""
    ledger = PrivacyLedger.open(tmp_path, "berlin")
    assert ledger.spent(study="heart", data="ab", limit=Limit(1e-4, study=3)).left == 3
    assert [] == list(tmp_path.iterdir())


def test_runs_of_a_study_share_its_budget(tmp_path: Path) -> None:
    """Another name of the run is no fresh budget: the cost of both runs together is what the accounting says."""
    ledger = filled(tmp_path, rounds=2)
    spent = charge(ledger, run="two", limit=Limit(1e-4, study=3))
    assert epsilon_of([STEP] * 3, 1e-4) == spent.epsilon
    assert spent.left == 3 - spent.epsilon


def test_other_studies_and_data_have_budgets_of_their_own_but_count_for_the_site(tmp_path: Path) -> None:
    """A study pays for itself; the hospital's own limit counts all of them, at the smallest delta of any."""
    ledger = filled(tmp_path, rounds=2)
    charge(ledger, study="lung", limit=Limit(1e-6))
    spent = charge(ledger, data="cd", limit=Limit(1e-4, study=3, site=9))
    assert epsilon_of([STEP], 1e-4) == spent.epsilon
    assert (epsilon_of([STEP] * 4, 1e-6), 1e-6) == (spent.site_epsilon, spent.site_delta)
    assert spent.site_left == 9 - spent.site_epsilon
    each = ledger.spent(study="heart", data="cd", limit=Limit(1e-4, site=9, each_data=True))
    assert epsilon_of([STEP], 1e-4) == each.site_epsilon


def test_what_a_study_has_not_left_is_refused_and_not_charged(tmp_path: Path) -> None:
    """The sentence says who, how much is spent, of what, and what was asked for; the ledger stays as it is."""
    ledger = filled(tmp_path, rounds=2)
    spent = ledger.spent(study="heart", data="ab", limit=FREE).epsilon
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(PrivacyBudgetSpent) as refusal:
        charge(ledger, round=3, run="two", limit=Limit(1e-4, study=spent * 1.01))
    assert str(refusal.value).startswith(
        f"site 'berlin': study 'heart' has spent epsilon {spent:.4g} of {spent * 1.01:g} with this data (delta 0.0001)"
        ", and the change of the shared weights (run 'two', round 3) would bring it to "
    )
    assert refusal.value.exit_code == 13
    assert before == (tmp_path / LEDGER).read_bytes()
    charge(ledger, Charge("sgd", 1000.0), limit=Limit(1e-4, study=spent * 1.01))


def test_what_the_site_has_not_left_is_refused(tmp_path: Path) -> None:
    """Its own limit holds over studies, and the sentence, which a server may read, says nothing of the other ones."""
    ledger = filled(tmp_path, rounds=2)
    most = round(epsilon_of([STEP] * 2, 1e-4) + 0.01, 3)
    with pytest.raises(PrivacyBudgetSpent, match=f"over all studies above epsilon {most} .*own policy allows") as said:
        charge(ledger, study="lung", limit=Limit(1e-4, study=3, site=most))
    assert "heart" not in str(said.value)
    assert len(ledger.entries()) == 2


def test_the_same_answer_is_charged_once(tmp_path: Path) -> None:
    """A round that is asked again is answered with what was kept, so it costs nothing; any other one does."""
    ledger = filled(tmp_path, rounds=0)
    first = charge(ledger, key="k")
    assert first.epsilon == charge(ledger, key="k").epsilon
    assert len(ledger.entries()) == 1
    charge(ledger, key="l")
    charge(ledger, key="k", run="two")
    charge(ledger, key="k", what="counts")
    charge(ledger, key="k", round=2)
    assert len(ledger.entries()) == 5
    charge(ledger)
    charge(ledger)
    assert len(ledger.entries()) == 7


def rolled_back(folder: Path) -> None:
    """Put an earlier copy of the ledger back."""
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    (folder / LEDGER).write_bytes(b"".join(lines[:-1]))


def lost(folder: Path) -> None:
    """Remove the ledger."""
    (folder / LEDGER).unlink()


def cheaper(folder: Path) -> None:
    """Make a line cheaper than it was."""
    text = (folder / LEDGER).read_text()
    (folder / LEDGER).write_text(text.replace('"noise": 4.0', '"noise": 9.0', 1))


def last_cheaper(folder: Path) -> None:
    """Make the last line cheaper, which no other line vouches for."""
    head, _, tail = (folder / LEDGER).read_text().rpartition('"noise": 4.0')
    (folder / LEDGER).write_text(f'{head}"noise": 9.0{tail}')


def begun_anew(folder: Path) -> None:
    """Put the first lines of another site's ledger in its place, and its anchor."""
    for name in (LEDGER, ANCHOR):
        (folder / name).unlink()
    other = folder / "elsewhere"
    for number in range(1, 5):
        charge(PrivacyLedger.open(other, "munich"), round=number, study="lung")
    for name in (LEDGER, ANCHOR):
        shutil.copy(other / name, folder / name)
    shutil.rmtree(other)


def without_anchor(folder: Path) -> None:
    """Remove the anchor and what the run's folder says."""
    (folder / ANCHOR).unlink()
    (folder / "heart" / "one" / RUN_HEAD).unlink()


def damaged_anchor(folder: Path) -> None:
    """Write something else into the anchor."""
    (folder / ANCHOR).write_text('{"count": -1}')


def no_line(folder: Path) -> None:
    """Append something that is no line of a ledger."""
    with (folder / LEDGER).open("a") as file:
        file.write("{}\n")


@pytest.mark.parametrize(
    "harm", [rolled_back, lost, cheaper, last_cheaper, begun_anew, without_anchor, damaged_anchor, no_line]
)
def test_ledger_that_was_lost_changed_or_put_back_is_noticed(harm: Callable[[Path], None], tmp_path: Path) -> None:
    """Nobody knows what is left then, so nothing is read as if it were spent, and nothing charged: exit code 13."""
    ledger = filled(tmp_path)
    harm(tmp_path)
    with pytest.raises(PrivacyBudgetSpent, match=r"privacy ledger.*nothing leaves before"):
        PrivacyLedger.open(tmp_path, "berlin")
    for using in (ledger, PrivacyLedger(tmp_path, "berlin")):
        if harm is not begun_anew:  # which only the folders of runs can tell, when the site starts
            with pytest.raises(PrivacyBudgetSpent):
                charge(using, round=4)
        with pytest.raises(PrivacyBudgetSpent):
            using.entries()


def test_the_folder_of_a_run_knows_of_a_ledger_whose_anchor_was_put_back_with_it(tmp_path: Path) -> None:
    """Ledger and anchor put back together are noticed all the same; a run's folder may be deleted when it is over."""
    filled(tmp_path)
    kept = {name: (tmp_path / name).read_bytes() for name in (LEDGER, ANCHOR)}
    charge(PrivacyLedger.open(tmp_path, "berlin"), round=4)
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PrivacyBudgetSpent, match=RUN_HEAD):
        PrivacyLedger.open(tmp_path, "berlin")
    shutil.rmtree(tmp_path / "heart")
    assert len(PrivacyLedger.open(tmp_path, "berlin").entries()) == 3


def test_crash_between_the_line_and_the_anchor_is_no_roll_back(tmp_path: Path) -> None:
    """The line is there, and what it says is spent; an unfinished line is none, for nothing was handed on for it."""
    filled(tmp_path, rounds=1)
    anchor, head = ((tmp_path / name).read_bytes() for name in (ANCHOR, f"heart/one/{RUN_HEAD}"))
    filled(tmp_path, rounds=1)
    (tmp_path / ANCHOR).write_bytes(anchor)
    (tmp_path / "heart" / "one" / RUN_HEAD).write_bytes(head)
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"number": 3, "bef')
    ledger = PrivacyLedger.open(tmp_path, "berlin")
    assert len(ledger.entries()) == 2
    charge(ledger, round=5)
    assert [1, 1, 5] == [entry.round for entry in PrivacyLedger.open(tmp_path, "berlin").entries()]


def test_crash_before_the_first_line_leaves_a_ledger_that_can_be_used(tmp_path: Path) -> None:
    """The anchor of an empty ledger was written, its first line not."""
    filled(tmp_path, rounds=1)
    (tmp_path / LEDGER).unlink()
    (tmp_path / "heart" / "one" / RUN_HEAD).unlink()
    (tmp_path / ANCHOR).write_text(json.dumps({"count": 0, "sha256": "0" * 64}))
    assert charge(PrivacyLedger.open(tmp_path, "berlin")).charges == (STEP,)


def test_two_at_once_cannot_both_spend_what_is_left_for_one(tmp_path: Path) -> None:
    """What is left is looked up and spent in one step, also by other processes: of eight, two find room."""
    limit = Limit(1e-4, study=epsilon_of([STEP] * 2, 1e-4) * 1.001)

    def try_it(number: int) -> bool:
        try:
            charge(PrivacyLedger.open(tmp_path, "berlin"), run=f"run-{number}", limit=limit)
        except PrivacyBudgetSpent:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_it, range(8))) == 2


def test_folder_that_cannot_be_written_lets_nothing_leave(tmp_path: Path) -> None:
    """What cannot be written down is not charged, and the caller hears of it."""
    (tmp_path / "state").write_text("a file, not a folder")
    with pytest.raises(StateError, match="cannot write"):
        charge(PrivacyLedger(tmp_path / "state", "berlin"))


def test_kill_at_any_point_never_leaves_less_spent_than_handed_on(tmp_path: Path) -> None:
    """A hundred times: what was handed on is in the ledger, with at most one round more, and it goes on from there."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = [(10, 10), *((int(handed), int(spent)) for handed, spent in map(str.split, done.stdout.splitlines()))]
    assert len(seen) == KILLS + 1
    for (handed, spent), (more_handed, more_spent) in pairwise(seen):
        assert 0 <= (more_spent - spent) - (more_handed - handed) <= 1
    assert seen[-1][0] > 10 + KILLS / 4
