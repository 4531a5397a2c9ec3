"""Shared by all steps of a study: its settings, its algorithms, its sites and its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from consilium.common.protocol.plans import study_digest
from consilium.common.study.pace import BufferedPace
from consilium.common.study.study import StudyConfig
from consilium.server.privacy.secure.ring import KeyRing
from consilium.server.strategies import Strategy
from consilium.server.study.exchange import Exchange
from consilium.server.study.handshake import Agreement
from consilium.server.study.run_folder import RunFolder
from consilium.server.weighting import Weighting


@dataclass(frozen=True)
class Study:
    """Everything a run needs, built by the composition root.

    Args:
        digest: of the study's settings; a checkpoint of other settings is refused.
        run: its name.
        train_sizes: training examples per site, as announced in the handshake.
        test_sizes: test examples per site, likewise.
        class_counts: training examples per class, for the sites that share them.
        labels: the same, of a site that does not share them 1 for each class that it has; none where there are none.
        site_digests: of the study as each site sees it.
        ring: the sites' keys of the run, where it sums securely.
        devices: the devices of groups that the next round asks.
        spares: devices that take the place of those that send nothing of use, in this order.
    """

    config: StudyConfig
    digest: str
    run: str
    exchange: Exchange
    strategy: Strategy
    weighting: Weighting
    folder: RunFolder
    train_sizes: Mapping[str, int] = field(default_factory=dict)
    test_sizes: Mapping[str, int] = field(default_factory=dict)
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    site_digests: Mapping[str, str] = field(default_factory=dict)
    ring: KeyRing = field(default_factory=KeyRing)
    devices: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()

    def with_sites(self, agreement: Agreement) -> "Study":
        """Return the study with the sites of an agreement, and what they announced."""
        cards = {site: reply.card for site, reply in agreement.replies.items()}
        digests = {site: self.site_digests.get(site) or study_digest(self.config.seen_by(site)) for site in cards}
        return replace(
            self,
            train_sizes={site: card.num_train for site, card in cards.items()},
            test_sizes={site: card.num_test for site, card in cards.items()},
            class_counts={site: card.class_counts for site, card in cards.items() if card.class_counts is not None},
            labels={site: card.class_counts or dict.fromkeys(card.classes, 1) for site, card in cards.items()},
            site_digests=digests,
        )

    @property
    def quorum(self) -> int:
        """How many accepted updates a round needs, if all of a cohort are there to be asked."""
        return self.quorum_of(self.config.cohort_size)

    def quorum_of(self, asked: int) -> int:
        """Return how many accepted updates a round needs of so many sites that are asked; as many fill a buffer.

        Where a site that is away cannot come back, none is missing without a fault of its own, so all are needed unless
        the study says otherwise.
        """
        by_default = self.config.quorum is None and self.exchange.patient
        is_number = isinstance(self.config.quorum, int) or isinstance(self.config.schedule, BufferedPace)
        return self.config.least_updates if is_number or by_default else asked
