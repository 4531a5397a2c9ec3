"""A hostile server and one site's share of noise: less of it, fewer sites for it, or a second draw are refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import MakeStudy
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.client.privacy.secure.run_keys import RunKeys
from consilium.client.privacy.secure.sums import Masking, SecureSums
from consilium.common.errors import ProtocolError, StateError, UpdateRejected
from consilium.common.host.twice import write_twice
from consilium.common.privacy.accounting import noise_for
from consilium.common.privacy.secure.context import sum_digest
from consilium.common.privacy.secure.fixed import Layout, to_words
from consilium.common.privacy.secure.keys import make_run_key, public_of, signed
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.noise import noise_share
from consilium.common.privacy.secure.payload import from_payload
from consilium.common.privacy.secure.sizes import threshold
from consilium.common.protocol.plans import PeersPlan, RoundPlan, SecureRound, SignedKey, UnmaskPlan, study_digest
from consilium.common.study.study import StudyConfig

SITES = tuple(f"site-{number:02}" for number in range(52))
ME, QUORUM, NOISE, SIZE = SITES[0], 50, 2.0, 4000
WEIGHTS, OTHER = "a" * 64, "b" * 64
Floats = npt.NDArray[np.float64]


def settings(**noise: Any) -> dict[str, Any]:
    """Return the settings of a study whose sums hide whole sites."""
    columns = {name: {"kind": "number"} for name in "ab"}
    scale = {name: {"mean": 0.0, "std": 1.0} for name in "ab"}
    return {
        "sites": list(SITES),
        "quorum": QUORUM,
        "rounds": 4,
        "weighting": {"factors": [{"kind": "size", "exponent": 0}]},
        "task": {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns, "scale": scale},
        "privacy": {"secure_aggregation": True, "sites": {"clip": 1.0} | (noise or {"noise": NOISE})},
    }


@dataclass
class Hospital:
    """One of 52 sites that have exchanged keys in a run, and a server that asks it what it likes."""

    study: StudyConfig
    sums: SecureSums
    truth: Floats

    def ask(
        self,
        *,
        number: int = 1,
        attempt: int = 1,
        cohort: Sequence[str] = SITES,
        received: str = WEIGHTS,
        change: float = 0.0,
        noise: float | None = NOISE,
        examples: int = 10,
    ) -> Words:
        """Have it mask its update, and take the masks off with its own secrets: what is left is what it hides."""
        asked = SecureRound(attempt=attempt, cohort=tuple(cohort), examples=examples, loss=0.0, noise=noise)
        plan = RoundPlan(
            run=self.sums.keys.run,
            site=ME,
            study=study_digest(self.sums.keys.study),
            round=number,
            asked=1,
            secure=asked,
        )
        delta = {"w": (self.truth + change).astype(np.float32)}
        payload = self.sums.mask(plan, Masking(delta, {}, 10, {}, received))
        words = from_payload(payload, self.layout, sites=len(cohort)).words
        memory, mask = self.sums.keys.memory(), Words.zeros(SIZE, 2)
        assert memory.sent is not None
        self.sums.keys.party(memory, cohort).mask(mask, self.sums._context(memory.sent))
        return Words(words.narrow - mask.narrow, words.wide - mask.wide)

    def noise(self, **asked: Any) -> Floats:
        """Return the noise in its update, in words."""
        words, change = self.ask(**asked), asked.get("change", 0.0)
        clear = to_words(self.layout, {"w": (self.truth + change).astype(np.float32)}, {}, 1.0)
        return (words.narrow - clear.narrow).view(np.int32).astype(np.float64)

    @property
    def layout(self) -> Layout:
        """Which word stands for what."""
        share = noise_share(self.study, NOISE)
        return Layout.of({"w": np.zeros(SIZE, np.float32)}, {}, bound=1.0, sites=len(SITES), share=share)


def hospital_of(study: StudyConfig, folder: Path, *, run: str = "run") -> Hospital:
    """Return the first site after the exchange of keys in a run."""
    private = {site: ec.generate_private_key(ec.SECP256R1()) for site in SITES}
    checked = {site: key.public_key() for site, key in private.items()}
    own = RunKeys(
        site=ME,
        study=study.seen_by(ME),
        run=run,
        folder=folder,
        own_key=lambda: private[ME],
        checked=lambda: checked,
    )
    digest, keys = sum_digest(study), {ME: own.signed_key()}
    for site in SITES[1:]:
        public = public_of(make_run_key())
        keys[site] = SignedKey(key=public, signature=signed(private[site], public, study=digest, run=run, site=site))
    own.take_peers(PeersPlan(run=run, site=ME, study=study_digest(study.seen_by(ME)), keys=keys))
    truth = np.random.default_rng(4).normal(scale=0.01, size=SIZE)
    return Hospital(study, SecureSums(own), truth)


@pytest.fixture
def hospital(tmp_path: Path, make_study: MakeStudy) -> Hospital:
    """One site of a study of noise 2."""
    return hospital_of(make_study(**settings()), tmp_path / "run")


def alike(one: Floats, other: Floats) -> float:
    """Return how much two draws are alike, from -1 to 1."""
    return float(np.corrcoef(one, other)[0, 1])


# --- one draw for one update -------------------------------------------------------------------------


def test_update_is_hidden_by_this_sites_share(hospital: Hospital) -> None:
    """Noise of the share's deviation, and nothing of the update in it."""
    share = noise_share(hospital.study, NOISE)
    assert share is not None
    assert QUORUM - (52 - threshold(52)) == share.honest
    noise = hospital.noise()
    assert noise.std() == pytest.approx(share.deviation, rel=4 / np.sqrt(2 * SIZE))
    assert abs(alike(noise, hospital.truth)) < 0.08


def test_asked_again_the_update_has_the_same_noise(hospital: Hospital) -> None:
    """In the same attempt, in the next one with other sites and references, and after the site was started again.

    Else the mean of several answers would have less noise than any of them.
    """
    first = hospital.noise()
    assert np.array_equal(first, hospital.noise())
    assert np.array_equal(first, hospital.noise(attempt=2, cohort=SITES[:51], examples=9))
    hospital.sums = SecureSums(replace(hospital.sums.keys))
    assert np.array_equal(first, hospital.noise(attempt=2, cohort=SITES[:51], examples=9))
    assert np.array_equal(first, hospital.noise(attempt=3))


def test_every_round_and_run_has_noise_of_its_own(hospital: Hospital, tmp_path: Path) -> None:
    """Of the same update too: their difference has the noise of both."""
    first, second = hospital.noise(), hospital.noise(number=2)
    other = hospital_of(hospital.study, tmp_path / "other", run="other").noise()
    assert abs(alike(first, second)) < 0.08
    assert abs(alike(first, other)) < 0.08


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("again", [{"change": 1e-3}, {"received": OTHER}])
def test_second_update_of_a_round_gets_no_noise(hospital: Hospital, attempt: int, again: dict[str, Any]) -> None:
    """Two updates of one round would tell twice as much as a round is accounted for."""
    hospital.ask()
    with pytest.raises(StateError, match="a second one would tell as much of the site again: start a new run"):
        hospital.ask(attempt=attempt, **again)
    assert hospital.noise().any()


def test_other_updates_never_share_noise(hospital: Hospital) -> None:
    """Were one to be masked all the same, the difference of the two would have the noise of both.

    The site's memory is put back between the two, which no server can do.
    """
    memory = hospital.sums.keys.folder / "secure.json"
    before, first = memory.read_bytes(), hospital.noise()
    write_twice(memory, before)
    assert abs(alike(first, hospital.noise(change=1e-3))) < 0.08


# --- enough of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        (None, r"leaves out the noise of its sum, but the study hides whole sites \(privacy\.sites\)"),
        (1.9, "asks for noise of 1.9 times the clip, the study's is 2"),
        (2.1, "asks for noise of 2.1 times the clip, the study's is 2"),
    ],
)
def test_other_noise_than_the_studys_is_refused(hospital: Hospital, noise: float | None, sentence: str) -> None:
    """Before anything is trained."""
    with pytest.raises(ProtocolError, match=sentence):
        hospital.ask(noise=noise)


def test_noise_of_a_budget_is_checked_by_the_site(tmp_path: Path, make_study: MakeStudy) -> None:
    """With a budget the server finds the noise; a site takes none with which all rounds would cost more."""
    hospital = hospital_of(make_study(**settings(epsilon=4.0)), tmp_path / "run")
    enough = noise_for(4.0, 1e-5, rate=1.0, steps=4)
    hospital.sums.check(_plan(hospital, enough))
    with pytest.raises(ProtocolError, match=r"with which 4 rounds cost more than privacy\.sites\.epsilon = 4"):
        hospital.sums.check(_plan(hospital, 0.97 * enough))


def test_noise_in_a_study_that_promises_none_is_refused(tmp_path: Path, make_study: MakeStudy) -> None:
    """A plan that no server of this program makes."""
    study = make_study(**(settings() | {"privacy": {"secure_aggregation": True}}))
    hospital = hospital_of(study, tmp_path / "run")
    with pytest.raises(ProtocolError, match="asks for noise in its sum, but the study promises none"):
        hospital.sums.check(_plan(hospital, 2.0))
    hospital.sums.check(_plan(hospital, None))


def _plan(hospital: Hospital, noise: float | None) -> RoundPlan:
    asked = SecureRound(attempt=1, cohort=SITES, examples=10, loss=0.0, noise=noise)
    return RoundPlan(run="run", site=ME, study=study_digest(hospital.study), round=1, asked=1, secure=asked)


def test_sum_of_fewer_sites_than_share_the_noise_is_refused(hospital: Hospital) -> None:
    """When it is masked, and when its masks are to be opened: two thirds of the sites would do without the noise."""
    with pytest.raises(ProtocolError, match="a sum over 49 sites, this site adds to sums over at least 50"):
        hospital.ask(cohort=SITES[:49])
    sites = hospital.study.privacy.sites
    assert sites is not None
    promised = hospital.study.privacy.model_copy(update={"sites": sites.model_copy(update={"colluding": 18})})
    sums = replace(
        hospital.sums, keys=replace(hospital.sums.keys, study=hospital.study.model_copy(update={"privacy": promised}))
    )
    with pytest.raises(ProtocolError, match="17 may work with the server without harm, the study promises 18"):
        sums.check(_plan(hospital, NOISE))
    hospital.ask()
    for count, text in ((49, "the sum of fewer than 50 stays masked"), (threshold(52), "the sum of fewer than 50")):
        plan = UnmaskPlan(run="run", site=ME, study="0" * 64, round=1, attempt=1, survivors=SITES[:count])
        with pytest.raises(ProtocolError, match=text):
            hospital.sums.unmask(plan, b"")


def test_update_with_a_counter_is_refused_by_the_site(hospital: Hospital) -> None:
    """Whole numbers would be in the sum as they are; the server's own check is not needed for that."""
    asked = SecureRound(attempt=1, cohort=SITES, examples=10, loss=0.0, noise=NOISE)
    plan = RoundPlan(run="run", site=ME, study=study_digest(hospital.study), round=1, asked=1, secure=asked)
    delta = {"w": np.zeros(3, np.float32), "count": np.array(3)}
    with pytest.raises(UpdateRejected, match="arrays count have no noise"):
        hospital.sums.mask(plan, Masking(delta, {}, 10, {}, WEIGHTS))
