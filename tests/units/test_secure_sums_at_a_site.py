"""A hostile server and one site's part in secure sums: everything that would show an update is refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy

from consilium.client.privacy.secure.memory import FILE
from consilium.client.privacy.secure.run_keys import RunKeys
from consilium.client.privacy.secure.sums import Masking, SecureSums
from consilium.common.errors import ConfigError, ProtocolError, StateError
from consilium.common.host.keys import make_site_key, read_private_key
from consilium.common.host.twice import write_twice
from consilium.common.privacy.secure.fixed import Layout, to_mean
from consilium.common.privacy.secure.masks import Words, add_mask
from consilium.common.privacy.secure.party import opened_shares, sign_of
from consilium.common.privacy.secure.payload import Masked, from_payload
from consilium.common.privacy.secure.shamir import SHARE_BYTES, factors, join
from consilium.common.privacy.secure.sizes import threshold
from consilium.common.protocol.plans import PeersPlan, RoundPlan, SecureRound, SignedKey, UnmaskPlan, study_digest
from consilium.common.study.study import StudyConfig

SITES = ("bern", "bonn", "graz", "lyon", "oslo")
SIZE = 4000
WEIGHTS, OTHER = "a" * 64, "b" * 64


@dataclass
class Hospitals:
    """Five sites that have exchanged keys in run `run`, and a server that asks them what it likes."""

    study: StudyConfig
    sums: dict[str, SecureSums]
    folder: Path
    truth: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def plan(
        self, site: str, *, number: int = 1, attempt: int = 1, cohort: Sequence[str] = SITES, **more: Any
    ) -> RoundPlan:
        """Return a round's plan."""
        asked = SecureRound(**{"attempt": attempt, "cohort": tuple(cohort), "examples": 10, "loss": 0.0, **more})
        digest = study_digest(self.study.seen_by(site))
        return RoundPlan(run="run", site=site, study=digest, round=number, asked=1, secure=asked)

    def ask(self, site: str, *, received: str = WEIGHTS, change: float = 0.0, **plan: Any) -> Masked:
        """Have a site mask its update."""
        delta = {"w": (self.truth[site] + change).astype(np.float32)}
        masking = Masking(delta, {}, 10, {}, received)
        asked = self.plan(site, **plan)
        payload = self.sums[site].mask(asked, masking)
        assert asked.secure is not None
        return from_payload(payload, self.layout, sites=len(asked.secure.cohort))

    def open(
        self, site: str, masked: Mapping[str, Masked], survivors: Sequence[str], *, number: int = 1, attempt: int = 1
    ) -> bytes:
        """Have a site open its shares of the masks of a round's sum."""
        digest = study_digest(self.study.seen_by(site))
        order = sorted(masked) if len(masked) == len(SITES) else SITES
        plan = UnmaskPlan(run="run", site=site, study=digest, round=number, attempt=attempt, survivors=tuple(survivors))
        text = b"".join(masked[name].sealed[list(order).index(site)] for name in survivors if name in masked)
        return self.sums[site].unmask(plan, text)

    @property
    def layout(self) -> Layout:
        """Which word stands for what."""
        return Layout.of({"w": np.zeros(SIZE, np.float32)}, {}, bound=self.study.privacy.bound, sites=len(SITES))


@pytest.fixture
def hospitals(tmp_path: Path, make_study: MakeStudy) -> Hospitals:
    """Five sites after the exchange of keys."""
    study = make_study(sites=list(SITES), privacy={"secure_aggregation": True}, quorum=4)
    for site in SITES:
        make_site_key(tmp_path / f"{site}.key", comment=site)
    private = {site: read_private_key(tmp_path / f"{site}.key") for site in SITES}
    checked = {site: key.public_key() for site, key in private.items()}

    def own(site: str) -> SecureSums:
        keys = RunKeys(
            site=site,
            study=study.seen_by(site),
            run="run",
            folder=tmp_path / site,
            own_key=lambda: private[site],
            checked=lambda: checked,
        )
        return SecureSums(keys)

    sums = {site: own(site) for site in SITES}
    chance = np.random.default_rng(4)
    truth = {site: chance.normal(scale=0.02, size=SIZE) for site in SITES}
    made = Hospitals(study, sums, tmp_path, truth)
    keys = {site: each.keys.signed_key() for site, each in sums.items()}
    for site, each in sums.items():
        each.keys.take_peers(peers(made, site, keys))
    return made


def peers(of: Hospitals, site: str, keys: Mapping[str, SignedKey]) -> PeersPlan:
    """Return the plan that passes keys on."""
    return PeersPlan(run="run", site=site, study=study_digest(of.study.seen_by(site)), keys=dict(keys))


def unmasked(
    of: Hospitals, masked: Mapping[str, Masked], survivors: Sequence[str], opened: Mapping[str, bytes]
) -> Words:
    """Return what a server gets that joins the shares it was given; its own oracle, without the server's code."""
    total = Words.zeros(of.layout.narrow, of.layout.wide)
    for name in survivors:
        total.add(masked[name].words)
    dropped = [name for name in SITES if name not in survivors]
    by = factors([SITES.index(name) + 1 for name in opened])
    for number, (name, other) in enumerate(opened_shares(survivors, dropped)):
        seed = join([text[number * SHARE_BYTES :][:SHARE_BYTES] for text in opened.values()], by)
        add_mask(total, seed, sign=-1 if name == other else -sign_of(name, other))
    return total


def correlation(words: Words, truth: np.ndarray[Any, Any]) -> float:
    """Return how much words tell of numbers, from -1 to 1."""
    return float(np.corrcoef(words.narrow.view(np.int32), truth)[0, 1])


# --- the honest way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [(), ("graz",), ("oslo",)])
def test_honest_server_learns_the_sum(hospitals: Hospitals, dropped: tuple[str, ...]) -> None:
    """With all five sites, and with the one missing that may be; any four that answer will do."""
    survivors = tuple(site for site in SITES if site not in dropped)
    masked = {site: hospitals.ask(site) for site in SITES}
    opened = {site: hospitals.open(site, masked, survivors) for site in survivors[:4]}
    mean = to_mean(hospitals.layout, unmasked(hospitals, masked, survivors, opened), sites=len(survivors))
    expected = np.mean([hospitals.truth[site] for site in survivors], axis=0)
    np.testing.assert_allclose(mean.delta["w"].astype(np.float64), expected, atol=1e-6)


def test_asked_again_a_site_sends_the_same_bytes(hospitals: Hospitals) -> None:
    """The same words, the same masks, the same sealed shares; also after it was started again."""
    first, second = hospitals.ask("bern"), hospitals.ask("bern")
    assert first.words.narrow.tobytes() == second.words.narrow.tobytes()
    assert first.sealed == second.sealed


def test_what_is_kept_is_for_the_owner_alone(hospitals: Hospitals) -> None:
    """The file with the key of the run has mode 0600."""
    hospitals.ask("bern")
    assert 0o600 == (hospitals.folder / "bern" / FILE).stat().st_mode & 0o777


# --- both kinds of masks -----------------------------------------------------------------------------


def test_site_never_opens_both_kinds_of_masks(hospitals: Hospitals) -> None:
    """Once one site counts as dropped it cannot count as one that has sent, nor the other way round."""
    masked = {site: hospitals.ask(site) for site in SITES}
    hospitals.open("bern", masked, SITES)
    with pytest.raises(ProtocolError, match="its masks were opened for other sites already: both kinds"):
        hospitals.open("bern", masked, [site for site in SITES if site != "oslo"])
    hospitals.open("bonn", masked, [site for site in SITES if site != "oslo"])
    with pytest.raises(ProtocolError, match="both kinds of a site's masks would show its update"):
        hospitals.open("bonn", masked, SITES)


def test_two_splits_cannot_both_be_had(hospitals: Hospitals) -> None:
    """A server that tells some that all have sent, and others that one has not, gets too few shares for one of them."""
    masked = {site: hospitals.ask(site) for site in SITES}
    without = [site for site in SITES if site != "oslo"]
    got: dict[tuple[str, ...], int] = {}
    for site in SITES:
        for split in (SITES, tuple(without)):
            if site in split:
                try:
                    hospitals.open(site, masked, split)
                except ProtocolError:
                    continue
                got[split] = got.get(split, 0) + 1
    assert sum(count >= threshold(len(SITES)) for count in got.values()) <= 1
    assert 5 == sum(got.values())


def test_site_remembers_what_it_opened_after_a_restart(hospitals: Hospitals) -> None:
    """It is on the disk, not in the process."""
    masked = {site: hospitals.ask(site) for site in SITES}
    hospitals.open("bern", masked, SITES)
    before = hospitals.sums["bern"]
    hospitals.sums["bern"] = SecureSums(replace(before.keys))
    with pytest.raises(ProtocolError, match="opened for other sites already"):
        hospitals.open("bern", masked, [site for site in SITES if site != "oslo"])


# --- small sums --------------------------------------------------------------------------------------


@pytest.mark.parametrize("survivors", [("bern", "bonn"), ("bern", "bonn", "graz"), ("bern",)])
def test_sum_of_too_few_stays_masked(hospitals: Hospitals, survivors: tuple[str, ...]) -> None:
    """Fewer than four of five, which is two thirds rounded up."""
    masked = {site: hospitals.ask(site) for site in SITES}
    with pytest.raises(
        ProtocolError, match=f"{len(survivors)} of 5 sites have sent an update, the sum of fewer than 4"
    ):
        hospitals.open("bern", masked, survivors)


@pytest.mark.parametrize("cohort", [("bern",), ("bern", "bonn")])
def test_smaller_cohort_is_refused_before_training(hospitals: Hospitals, cohort: tuple[str, ...]) -> None:
    """Of two sites each would learn the other's update, and the server with one of them the other's."""
    with pytest.raises(ProtocolError, match=f"a sum over {len(cohort)} sites, this site adds to sums over at least 3"):
        hospitals.sums["bern"].check(hospitals.plan("bern", cohort=cohort))


def test_policy_can_ask_for_larger_sums(hospitals: Hospitals) -> None:
    """Both when a round begins and when its masks are to be opened."""
    careful = replace(hospitals.sums["bern"], least=5)
    with pytest.raises(ProtocolError, match="adds to sums over at least 5"):
        careful.check(hospitals.plan("bern", cohort=SITES[:4]))
    masked = {site: hospitals.ask(site) for site in SITES}
    hospitals.sums["bern"] = careful
    with pytest.raises(ProtocolError, match="the sum of fewer than 5 stays masked"):
        hospitals.open("bern", masked, SITES[:4])


@pytest.mark.parametrize(
    "cohort", [("bonn", "graz", "lyon"), ("bern", "bern", "bonn"), ("graz", "bonn", "bern"), ("bern", "bonn", "rome")]
)
def test_odd_cohorts_are_refused(hospitals: Hospitals, cohort: tuple[str, ...]) -> None:
    """Without the site, with a name twice, unsorted, and with a stranger."""
    with pytest.raises(
        ProtocolError, match=r"in sorted order, each once, with this site's own|no checked key of site 'rome'"
    ):
        hospitals.sums["bern"].check(hospitals.plan("bern", cohort=cohort))


def test_update_in_the_clear_is_refused(hospitals: Hospitals) -> None:
    """A plan that leaves the masks out, in a study that promised them."""
    plan = hospitals.plan("bern").model_copy(update={"secure": None})
    with pytest.raises(
        ProtocolError, match="asks for an update in the clear, but the study says secure_aggregation = true"
    ):
        hospitals.sums["bern"].check(plan)


# --- different things for different sites ------------------------------------------------------------


def test_site_that_was_sent_other_weights_spoils_the_sum(hospitals: Hospitals) -> None:
    """A8: what a server gets has a correlation below 0.05 with the sum, and with every single update.

    The others refuse to open anything, as the shares of the odd site are sealed for another context; so the test
    grants the server the seeds of all own masks, which is more than any site would give it.
    """
    masked = {site: hospitals.ask(site, received=OTHER if site == "lyon" else WEIGHTS) for site in SITES}
    for site in SITES:
        with pytest.raises(ProtocolError, match="cannot be opened here: the server has told the two different things"):
            hospitals.open(site, masked, SITES)
    total = Words.zeros(SIZE, 2)
    for site in SITES:
        total.add(masked[site].words)
        sums = hospitals.sums[site]
        memory = sums.keys.memory()
        party, sent = sums.keys.party(memory, SITES), memory.sent
        assert sent is not None
        now = sums._context(sent)
        add_mask(total, now.derived(party.own, "own mask", site), sign=-1)
    assert abs(correlation(total, np.sum([hospitals.truth[site] for site in SITES], axis=0))) < 0.05
    for site in SITES:
        assert abs(correlation(total, hospitals.truth[site])) < 0.05
        assert abs(correlation(masked[site].words, hospitals.truth[site])) < 0.05


def test_sum_of_equal_weights_is_not_noise(hospitals: Hospitals) -> None:
    """The test of the test above: with the same weights for all, the same sum has a correlation of 1."""
    masked = {site: hospitals.ask(site) for site in SITES}
    opened = {site: hospitals.open(site, masked, SITES) for site in SITES[:4]}
    total = unmasked(hospitals, masked, SITES, opened)
    assert correlation(total, np.sum([hospitals.truth[site] for site in SITES], axis=0)) > 0.999


@pytest.mark.parametrize(
    "change",
    [{"received": OTHER}, {"cohort": SITES[:4]}, {"examples": 9}, {"loss": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_same_attempt_is_masked_in_one_context_only(hospitals: Hospitals, change: dict[str, Any]) -> None:
    """Other weights, another cohort or other references under the same number are refused."""
    hospitals.ask("bern")
    with pytest.raises(ProtocolError, match="came with other weights, or for other sites, than the first time"):
        hospitals.ask("bern", **change)


def test_second_update_under_the_same_masks_is_refused(hospitals: Hospitals) -> None:
    """Their difference would be in the clear."""
    hospitals.ask("bern")
    with pytest.raises(StateError, match="no second one is hidden by the same masks"):
        hospitals.ask("bern", change=0.01)


# --- the same round again ----------------------------------------------------------------------------


def test_next_attempt_has_other_masks(hospitals: Hospitals) -> None:
    """With the same cohort or a smaller one: the difference of the two payloads tells nothing."""
    first = hospitals.ask("bern")
    second = hospitals.ask("bern", attempt=2, cohort=SITES[:4], change=0.01)
    difference = Words(first.words.narrow - second.words.narrow, first.words.wide)
    assert abs(correlation(difference, hospitals.truth["bern"])) < 0.05


def test_unmasked_round_is_not_masked_for_another_cohort(hospitals: Hospitals) -> None:
    """Two sums of one round whose sites differ by one would show that one's update."""
    masked = {site: hospitals.ask(site) for site in SITES}
    for site in SITES[:4]:
        hospitals.open(site, masked, SITES)
    for site in SITES[:4]:
        with pytest.raises(ProtocolError, match="attempt 1 was unmasked here: a second sum of a round would show"):
            hospitals.ask(site, attempt=2, cohort=SITES[:4])


def test_earlier_attempt_is_not_unmasked_after_a_later_one(hospitals: Hospitals) -> None:
    """So that of two attempts at most one can be opened, whatever was collected before."""
    masked = {site: hospitals.ask(site) for site in SITES}
    for site in SITES[:4]:
        hospitals.ask(site, attempt=2, cohort=SITES[:4])
        with pytest.raises(ProtocolError, match="attempt 1 is not what this site has sent last"):
            hospitals.open(site, masked, SITES)
    with pytest.raises(ProtocolError, match="attempt 1 is refused, this site is at attempt 2"):
        hospitals.ask("bern")


def test_earlier_rounds_are_neither_masked_nor_unmasked(hospitals: Hospitals) -> None:
    """A replay of a round that is over."""
    masked = {site: hospitals.ask(site) for site in SITES}
    hospitals.ask("bern", number=2)
    with pytest.raises(ProtocolError, match="this site has masked round 2 already"):
        hospitals.ask("bern", number=1, attempt=2)
    with pytest.raises(ProtocolError, match="attempt 1 is not what this site has sent last"):
        hospitals.open("bern", masked, SITES)


# --- keys --------------------------------------------------------------------------------------------


def signed_keys(of: Hospitals) -> dict[str, SignedKey]:
    """Return the keys that the sites have signed."""
    return {site: each.keys.signed_key() for site, each in of.sums.items()}


def test_key_of_a_stranger_is_refused(hospitals: Hospitals) -> None:
    """The server alone can never bring a site in."""
    keys = signed_keys(hospitals)
    with pytest.raises(ProtocolError, match="names site 'rome', whose key nobody here has checked"):
        hospitals.sums["bern"].keys.take_peers(peers(hospitals, "bern", {**keys, "rome": keys["bonn"]}))


def test_forged_signature_is_refused(hospitals: Hospitals) -> None:
    """A key that the server made, with another one's signature, a changed one, or one for another site or run."""
    keys = signed_keys(hospitals)
    forged = {
        "another's key": SignedKey(key="07" * 32, signature=keys["bonn"].signature),
        "another site's": keys["graz"],
        "changed": SignedKey(key=keys["bonn"].key, signature=keys["bonn"].signature[:-2] + "00"),
        "no signature": SignedKey(key=keys["bonn"].key, signature="00" * 8),
        "another run's": replace(
            hospitals.sums["bonn"].keys, run="other", folder=hospitals.folder / "other"
        ).signed_key(),
    }
    for each in forged.values():
        with pytest.raises(ProtocolError, match="the key of site 'bonn' for run 'run' is not signed with the key"):
            hospitals.sums["bern"].keys.take_peers(peers(hospitals, "bern", {**keys, "bonn": each}))


def test_key_of_a_site_does_not_change_within_a_run(hospitals: Hospitals) -> None:
    """Nor is this site's own missing or replaced."""
    keys = signed_keys(hospitals)
    fresh = replace(hospitals.sums["bonn"].keys, folder=hospitals.folder / "fresh").signed_key()
    with pytest.raises(ProtocolError, match="site 'bonn' has another key than before; start a new run"):
        hospitals.sums["bern"].keys.take_peers(peers(hospitals, "bern", {**keys, "bonn": fresh}))
    with pytest.raises(ProtocolError, match="its own key is not among those that the server passes on"):
        hospitals.sums["bern"].keys.take_peers(
            peers(hospitals, "bern", {name: key for name, key in keys.items() if name != "bern"})
        )


def test_site_whose_checked_keys_are_another_ones_does_not_start(hospitals: Hospitals) -> None:
    """A bundle that was made before this site's key was replaced."""
    keys = hospitals.sums["bern"].keys
    swapped = {**keys.checked(), "bern": keys.checked()["bonn"]}
    with pytest.raises(ConfigError, match="do not hold this site's own key: accept a bundle"):
        replace(keys, checked=lambda: swapped).signed_key()


def test_nothing_is_masked_before_keys_were_exchanged(hospitals: Hospitals) -> None:
    """Neither a round nor an unmasking."""
    alone = SecureSums(replace(hospitals.sums["bern"].keys, folder=hospitals.folder / "empty"))
    with pytest.raises(ProtocolError, match="was not asked for its key of run 'run', which comes first"):
        alone.check(hospitals.plan("bern"))
    alone.keys.signed_key()
    with pytest.raises(ProtocolError, match="there is no checked key of site 'bern' for this run"):
        alone.check(hospitals.plan("bern"))


def test_damaged_memory_is_an_error_that_shows_no_key(hospitals: Hospitals) -> None:
    """The sentence goes to logs; the file holds a private key."""
    path = hospitals.folder / "bern" / FILE
    values = json.loads(path.read_text())
    write_twice(path, json.dumps({**values, "sent": 5}).encode())
    with pytest.raises(StateError, match="is damaged, so it is not known what was masked") as error:
        hospitals.ask("bern")
    assert values["key"] not in f"{error.value!r} {error.value.__cause__!r}"


def test_sealed_shares_of_another_length_are_refused(hospitals: Hospitals) -> None:
    """Bytes from outside: none, and too many."""
    masked = {site: hospitals.ask(site) for site in SITES}
    plan = UnmaskPlan(run="run", site="bern", study="0" * 64, round=1, attempt=1, survivors=SITES)
    for text in (None, b"", b"".join(masked[name].sealed[0] for name in SITES) + b"x"):
        with pytest.raises(ProtocolError, match="the sealed shares have"):
            hospitals.sums["bern"].unmask(plan, text)
