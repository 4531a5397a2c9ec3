"""Before the first round: a site's data as read, its model as built, and what it reports of both in the handshake."""

import logging
from dataclasses import dataclass

import torch

from consilium.client.data import UnscaledData, label_noise, noise_key, noisy_counts, noisy_label_counts, read_site
from consilium.client.methods import Method
from consilium.client.models import Model
from consilium.client.site.announced import Announced, announce, private_card
from consilium.client.site.beginnings import beginning_of, takes_turns
from consilium.common.errors import ProtocolError
from consilium.common.protocol.cards import DataCard
from consilium.common.study.scale import Scale
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Task
from consilium.common.weights.arrays import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Facts:
    """What a site reports of its data and of its initial weights.

    Args:
        data_digest: of the examples in their splits; it stays at the site.
        initial_digest: of all initial weights.
        shared: the initial weights that leave the site, in the order of their names.
        shared_digest: of these.
        buffers: names of those that gradients do not move.
        announced: how many patients there are, as a private study is told; None in other studies.
    """

    card: DataCard
    data_digest: str
    initial_digest: str
    shared: Weights
    shared_digest: str
    buffers: frozenset[str]
    announced: Announced | None = None


@dataclass(frozen=True, eq=False)
class Origin:
    """A site's data before it is scaled, and the whole model that the study begins with."""

    data: UnscaledData
    model: Model
    initial: Weights
    facts: Facts

    @property
    def size(self) -> int:
        """Bytes of the data, and of the model where the site has it to itself: twice, as it holds and as it began."""
        data = self.data.raw.x.nbytes + self.data.raw.y.nbytes
        return int(data) + (0 if takes_turns() else 2 * sum(array.nbytes for array in self.initial.values()))


def read_origin(config: SiteConfig, study: StudyConfig, method: Method, device: torch.device) -> Origin:
    """Read the data and build the model, which is to be used on `device`.

    Raises:
        DataError: the data is missing, corrupt or too small.
        ModelError: the model or its pretrained weights do not fit.
    """
    data = read_site(config, study, share_class_counts=config.share_class_counts)
    begin = beginning_of(study, method, data.input_shape, weights_dir=config.weights_dir, device=device)
    for note in begin.model.notes:
        log.info("pretrained weights read site=%s note=%r", config.name, note)
    announced, card = None, _card(config, study, data)
    if (privacy := study.privacy.examples) is not None:
        announced = announce(config, study, privacy, data)
        card = private_card(study, announced, data)
    facts = Facts(
        card=card,
        data_digest=data.digest,
        initial_digest=begin.initial_digest,
        shared=begin.shared,
        shared_digest=begin.shared_digest,
        buffers=begin.names.shared - begin.model.trainable,
        announced=announced,
    )
    return Origin(data, begin.model, begin.initial, facts)


def _card(config: SiteConfig, study: StudyConfig, data: UnscaledData) -> DataCard:
    """Return the data card, with the facts that the site's settings let it share, and with noise if they ask for it."""
    card = data.card
    if study.task.agrees_on_scale and config.share_scale:
        card = card.model_copy(update={"moments": data.moments()})
    if config.class_counts_epsilon is not None and card.class_counts is not None:
        key = noise_key(config.state_dir, site=config.name)
        # A picture with its mask may hold every class, so that it may change each of the counts by one.
        each = config.class_counts_epsilon / (len(study.task.classes) if study.task.label_kind == "masks" else 1)
        counts = noisy_counts(card.class_counts, study.task.classes, each, key=key)
        card = card.model_copy(update={"class_counts": counts})
    if config.class_counts_epsilon is not None and card.label_counts is not None:
        key = noise_key(config.state_dir, site=config.name)
        epsilon, spread = config.class_counts_epsilon, label_noise(len(card.label_counts), config.class_counts_epsilon)
        noised = noisy_label_counts(card.label_counts, epsilon, most=card.num_examples, key=key)
        card = card.model_copy(update={"label_counts": noised, "label_noise": spread})
    return card


def check_scale(scale: Scale | None, task: Task, *, site: str) -> None:
    """Check a scale from the server.

    Raises:
        ProtocolError: this study has no scale from the handshake, or the scale is not one of this study's columns.
    """
    who = f"site '{site}'"
    if not task.agrees_on_scale:
        raise ProtocolError(f"{who}: the server sent a scale, but this study leaves none to the handshake")
    if scale is None and task.scale == "federation":
        raise ProtocolError(f"{who}: the server sent no scale, but the study says task.scale = 'federation'")
    if scale is not None and len(scale.mean) != len(task.scaled_columns):
        raise ProtocolError(
            f"{who}: the server sent a scale of {len(scale.mean)} columns, expected one of {len(task.scaled_columns)}"
        )
