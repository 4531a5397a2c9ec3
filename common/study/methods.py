"""Settings of every method: what a site does in a round."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from consilium.common.study.method_base import MethodSettings
from consilium.common.study.parts import OwnKinds
from consilium.common.study.ranges import Positive


class LocalMethod(MethodSettings):
    """Nothing is shared; every site trains alone."""

    not_private: ClassVar[str | None] = None
    shares_nothing: ClassVar[bool] = True
    kind: Literal["local"] = "local"


class FedAvgMethod(MethodSettings):
    """Everything is shared, nothing is personal."""

    comparable: ClassVar[bool] = True
    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    kind: Literal["fedavg"] = "fedavg"


class FineTuneMethod(MethodSettings):
    """Everything is shared; a site serves the global model fine-tuned on its own training data."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = None
    kind: Literal["fine_tune"] = "fine_tune"
    epochs: int = Field(default=5, ge=1)
    """Passes of fine-tuning over the site's training examples."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of fine-tuning, in place of `epochs`."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Plain SGD, or Adam, which wants a smaller rate."""
    learning_rate: Positive = 0.01
    """Step size of fine-tuning, whatever the study trains with."""
    layers: Literal["all", "head"] = "all"
    """The layers that are fine-tuned."""


class FedProxMethod(MethodSettings):
    """Everything is shared; local training is pulled towards the weights received."""

    comparable: ClassVar[bool] = True
    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    plain_steps: ClassVar[bool] = False
    kind: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.1, ge=0)
    """Strength of the pull towards the weights received; 0 is FedAvg."""


class ScaffoldMethod(MethodSettings):
    """The site's half of SCAFFOLD: local steps corrected by control variates."""

    comparable: ClassVar[bool] = True
    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    plain_sgd: ClassVar[bool] = True
    matched: ClassVar[bool] = True
    own_strategy: ClassVar[str | None] = "scaffold"
    kind: Literal["scaffold"] = "scaffold"


class FedDynMethod(MethodSettings):
    """The site's half of FedDyn: a pull to the weights received that is corrected by the site's last gradient."""

    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    plain_steps: ClassVar[bool] = False
    matched: ClassVar[bool] = True
    own_strategy: ClassVar[str | None] = "feddyn"
    kind: Literal["feddyn"] = "feddyn"
    alpha: Positive = 0.1
    """Strength of the pull towards the weights received."""


class MoonMethod(MethodSettings):
    """Everything is shared; features are pulled to those of the weights received, away from the site's last ones."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = (
        "compares each row's features with those of two other models, in a loss that has no noise"
    )
    kind: Literal["moon"] = "moon"
    mu: float = Field(default=1.0, ge=0)
    """Weight of the contrastive term; 0 is FedAvg."""
    temperature: Positive = 0.5
    """Temperature of the contrastive term."""


class FedPerMethod(MethodSettings):
    """The backbone is shared, the head is personal."""

    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    kind: Literal["fedper"] = "fedper"


class FedRepMethod(MethodSettings):
    """The backbone is shared, the head is personal; the head is trained first, then the backbone."""

    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    kind: Literal["fedrep"] = "fedrep"
    head_epochs: int = Field(default=10, ge=1)
    """Passes over the training examples that train the head before the backbone, in each round."""


class FedRodMethod(MethodSettings):
    """Everything is shared, trained as if classes were balanced; a personal head is added to the shared one."""

    not_private: ClassVar[str | None] = (
        "balances its loss by this site's class counts and trains a second head, both without noise"
    )
    of_classes: ClassVar[str | None] = "balances classes"
    balances: ClassVar[bool] = True
    linear_head: ClassVar[str | None] = "adds two heads' arrays"
    kind: Literal["fedrod"] = "fedrod"


class FendaMethod(MethodSettings):
    """The backbone is shared; a second backbone and a head on the features of both are personal."""

    not_private: ClassVar[str | None] = "trains a second backbone beside the shared one, without noise"
    linear_head: ClassVar[str | None] = "joins the features of two backbones in one layer"
    kind: Literal["fenda"] = "fenda"


class LgFedAvgMethod(MethodSettings):
    """The head is shared, the backbone is personal."""

    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    kind: Literal["lg_fedavg"] = "lg_fedavg"


class FedBabuMethod(MethodSettings):
    """The backbone is shared and trained under a fixed head; a site serves a fine-tuned copy."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = None
    kind: Literal["fedbabu"] = "fedbabu"
    epochs: int = Field(default=5, ge=1)
    """Passes of fine-tuning over the site's training examples."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Plain SGD, or Adam, which wants a smaller rate."""
    learning_rate: Positive = 0.01
    """Step size of fine-tuning, whatever the study trains with."""
    layers: Literal["all", "head"] = "all"
    """The layers that are fine-tuned."""


class FedBnMethod(MethodSettings):
    """Everything but BatchNorm is shared."""

    not_private: ClassVar[str | None] = "keeps BatchNorm, which makes every row's answer depend on the other rows"
    local_batch_norm: ClassVar[bool] = True
    kind: Literal["fedbn"] = "fedbn"


class FedDbeMethod(MethodSettings):
    """Everything is shared but a vector that shifts the head's inputs; the sites' mean features are pulled together."""

    not_private: ClassVar[str | None] = "pulls and sends the mean features of a batch, which have no noise"
    kind: Literal["feddbe"] = "feddbe"
    kappa: float = Field(default=1.0, ge=0)
    """Strength of the pull of the features' mean towards that of all sites."""
    mu: float = Field(default=1.0, gt=0, le=1)
    """How much of the features' running mean a batch replaces; 1: the last batch is the mean."""


class MrMtlMethod(MethodSettings):
    """A personal whole model, pulled towards the mean of all sites' personal models."""

    tunes_served: ClassVar[bool] = False
    not_private: ClassVar[str | None] = None
    plain_steps: ClassVar[bool] = False
    kind: Literal["mr_mtl"] = "mr_mtl"
    lam: float = Field(default=1.0, ge=0)
    """Strength of the pull towards the mean of all sites' models; 0 is local training."""


class DittoMethod(MethodSettings):
    """A personal whole model, pulled towards the global one."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = None
    kind: Literal["ditto"] = "ditto"
    lam: float = Field(default=1.0, ge=0)
    """Strength of the pull of the personal model towards the global one; 0 is local training."""


class ApflMethod(MethodSettings):
    """A personal whole model, mixed with the shared one in a proportion that each site learns."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = None
    plain_sgd: ClassVar[bool] = True
    kind: Literal["apfl"] = "apfl"
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the personal model in the mix, at the start."""
    adaptive: bool = True
    """Whether each site learns its `alpha`."""


class PFedMeMethod(MethodSettings):
    """A personal whole model that solves a proximal problem around the shared one at every step."""

    not_private: ClassVar[str | None] = "sends what personal models that are trained without noise have pulled it to"
    plain_sgd: ClassVar[bool] = True
    plain_steps: ClassVar[bool] = False
    kind: Literal["pfedme"] = "pfedme"
    lam: Positive = 15.0
    """Strength of the proximal term between the personal model and the shared one."""
    inner_steps: int = Field(default=5, ge=1)
    """Steps of the personal model per batch."""
    personal_learning_rate: Positive = 0.05
    """Step size of the personal model; stable only for a product with `lam` below 2."""


class FedAlaMethod(MethodSettings):
    """A site starts from its own mix, learned element by element, of its last and the global weights."""

    not_private: ClassVar[str | None] = "starts its training from a mix that is learned without noise"
    plain_steps: ClassVar[bool] = False
    kind: Literal["fedala"] = "fedala"
    layers: int = Field(default=1, ge=1)
    """How many layers, from the top, are mixed; below them the received weights are taken."""
    fraction: float = Field(default=0.8, gt=0, le=1)
    """Part of the training examples on which the mix is learned."""
    mix_learning_rate: Positive = 1.0
    """Step size of the mix."""
    tolerance: Positive = 0.1
    """The first mix is learned until the standard deviation of the last 10 losses is below this."""


class KnnPerMethod(MethodSettings):
    """Everything is shared; a site serves the global model mixed with nearest neighbours of its own examples."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = None
    of_classes: ClassVar[str | None] = "lets neighbours vote for a class"
    kind: Literal["knn_per"] = "knn_per"
    neighbours: int = Field(default=10, ge=1)
    """How many nearest training examples vote."""
    mix: float | None = Field(default=None, ge=0, le=1)
    """Their share of the answer; None: tuned on the site's validation examples."""


class PerFedAvgMethod(MethodSettings):
    """Meta-learning: weights from which one or a few local steps lead far."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = "takes gradients of gradients, in batches that have no noise"
    plain_sgd: ClassVar[bool] = True
    plain_steps: ClassVar[bool] = False
    own_strategy: ClassVar[str | None] = "per_fedavg"
    kind: Literal["per_fedavg"] = "per_fedavg"
    variant: Literal["first_order", "hessian_free"] = "first_order"
    """How the meta-gradient is approximated."""
    inner_learning_rate: Positive = 0.01
    """Step size of adaptation, in training and before serving."""
    difference: Positive = 1e-3
    """`hessian_free`: how far apart the two gradients of the finite difference are taken."""
    adapt_steps: int = Field(default=1, ge=0)
    """Steps of adaptation before serving; 0 serves the global model."""


class ReptileMethod(MethodSettings):
    """Meta-learning: train as FedAvg does, serve after a few local steps."""

    comparable: ClassVar[bool] = True
    not_private: ClassVar[str | None] = None
    own_strategy: ClassVar[str | None] = "reptile"
    kind: Literal["reptile"] = "reptile"
    adapt_steps: int = Field(default=5, ge=0)
    """Steps of adaptation before serving; 0 serves the global model."""
    adapt_learning_rate: Positive = 0.01
    """Step size of adaptation."""


MethodConfig = Annotated[
    LocalMethod
    | FedAvgMethod
    | FineTuneMethod
    | FedProxMethod
    | ScaffoldMethod
    | FedDynMethod
    | MoonMethod
    | FedPerMethod
    | FedRepMethod
    | FedRodMethod
    | FendaMethod
    | LgFedAvgMethod
    | FedBabuMethod
    | FedBnMethod
    | FedDbeMethod
    | MrMtlMethod
    | DittoMethod
    | ApflMethod
    | PFedMeMethod
    | FedAlaMethod
    | KnnPerMethod
    | PerFedAvgMethod
    | ReptileMethod,
    Field(discriminator="kind"),
    OwnKinds("methods", MethodSettings),
]
