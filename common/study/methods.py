"""Settings of every method: what a site does in a round."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.study.ranges import Positive
from common.study.record import Record


class MethodSettings(Record):
    """Base of every method's settings."""

    plain_sgd: ClassVar[bool] = False
    plain_steps: ClassVar[bool] = True
    """The shared arrays move by the study's optimiser alone, so that `train.effective_steps` holds."""
    matched: ClassVar[bool] = False
    """The server's memory counts on what the site keeps: a site that lost it cannot go on in the run."""


class LocalMethod(MethodSettings):
    """Nothing is shared; every site trains alone."""

    kind: Literal["local"] = "local"


class FedAvgMethod(MethodSettings):
    """Everything is shared, nothing is personal."""

    kind: Literal["fedavg"] = "fedavg"


class FineTuneMethod(MethodSettings):
    """Everything is shared; a site serves the global model fine-tuned on its own training data."""

    kind: Literal["fine_tune"] = "fine_tune"
    epochs: int = Field(default=5, ge=1)
    steps: int | None = Field(default=None, ge=1)
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.01
    layers: Literal["all", "head"] = "all"


class FedProxMethod(MethodSettings):
    """Everything is shared; local training is pulled towards the weights received."""

    plain_steps: ClassVar[bool] = False
    kind: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.1, ge=0)


class ScaffoldMethod(MethodSettings):
    """The site's half of SCAFFOLD: local steps corrected by control variates."""

    plain_sgd: ClassVar[bool] = True
    matched: ClassVar[bool] = True
    kind: Literal["scaffold"] = "scaffold"


class FedDynMethod(MethodSettings):
    """The site's half of FedDyn: a pull to the weights received that is corrected by the site's last gradient."""

    plain_steps: ClassVar[bool] = False
    matched: ClassVar[bool] = True
    kind: Literal["feddyn"] = "feddyn"
    alpha: Positive = 0.1


class MoonMethod(MethodSettings):
    """Everything is shared; features are pulled to those of the weights received, away from the site's last ones."""

    kind: Literal["moon"] = "moon"
    mu: float = Field(default=1.0, ge=0)
    temperature: Positive = 0.5


class FedPerMethod(MethodSettings):
    """The backbone is shared, the head is personal."""

    kind: Literal["fedper"] = "fedper"


class FedRepMethod(MethodSettings):
    """The backbone is shared, the head is personal; the head is trained first, then the backbone."""

    kind: Literal["fedrep"] = "fedrep"
    head_epochs: int = Field(default=10, ge=1)


class FedRodMethod(MethodSettings):
    """Everything is shared, trained as if classes were balanced; a personal head is added to the shared one."""

    kind: Literal["fedrod"] = "fedrod"


class FendaMethod(MethodSettings):
    """The backbone is shared; a second backbone and a head on the features of both are personal."""

    kind: Literal["fenda"] = "fenda"


class LgFedAvgMethod(MethodSettings):
    """The head is shared, the backbone is personal."""

    kind: Literal["lg_fedavg"] = "lg_fedavg"


class FedBabuMethod(MethodSettings):
    """The backbone is shared and trained under a fixed head; a site serves a fine-tuned copy."""

    kind: Literal["fedbabu"] = "fedbabu"
    epochs: int = Field(default=5, ge=1)
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.01
    layers: Literal["all", "head"] = "all"


class FedBnMethod(MethodSettings):
    """Everything but BatchNorm is shared."""

    kind: Literal["fedbn"] = "fedbn"


class FedDbeMethod(MethodSettings):
    """Everything is shared but a vector that shifts what the head is given; the features' mean is held together."""

    kind: Literal["feddbe"] = "feddbe"
    kappa: float = Field(default=1.0, ge=0)
    mu: float = Field(default=1.0, gt=0, le=1)


class MrMtlMethod(MethodSettings):
    """A personal whole model, pulled towards the mean of all sites' personal models."""

    plain_steps: ClassVar[bool] = False
    kind: Literal["mr_mtl"] = "mr_mtl"
    lam: float = Field(default=1.0, ge=0)


class DittoMethod(MethodSettings):
    """A personal whole model, pulled towards the global one."""

    kind: Literal["ditto"] = "ditto"
    lam: float = Field(default=1.0, ge=0)


class ApflMethod(MethodSettings):
    """A personal whole model, mixed with the shared one in a proportion that each site learns."""

    plain_sgd: ClassVar[bool] = True
    kind: Literal["apfl"] = "apfl"
    alpha: float = Field(default=0.5, ge=0, le=1)
    adaptive: bool = True


class PFedMeMethod(MethodSettings):
    """A personal whole model that solves a proximal problem around the shared one at every step."""

    plain_sgd: ClassVar[bool] = True
    plain_steps: ClassVar[bool] = False
    kind: Literal["pfedme"] = "pfedme"
    lam: Positive = 15.0
    inner_steps: int = Field(default=5, ge=1)
    personal_learning_rate: Positive = 0.05


class FedAlaMethod(MethodSettings):
    """A site starts from its own mix, learned element by element, of its last and the global weights."""

    plain_steps: ClassVar[bool] = False
    kind: Literal["fedala"] = "fedala"
    layers: int = Field(default=1, ge=1)
    fraction: float = Field(default=0.8, gt=0, le=1)
    mix_learning_rate: Positive = 1.0
    tolerance: Positive = 0.1


class KnnPerMethod(MethodSettings):
    """Everything is shared; a site serves the global model mixed with nearest neighbours of its own examples."""

    kind: Literal["knn_per"] = "knn_per"
    neighbours: int = Field(default=10, ge=1)
    mix: float | None = Field(default=None, ge=0, le=1)


class PerFedAvgMethod(MethodSettings):
    """Meta-learning: weights from which one or a few local steps lead far."""

    plain_sgd: ClassVar[bool] = True
    plain_steps: ClassVar[bool] = False
    kind: Literal["per_fedavg"] = "per_fedavg"
    variant: Literal["first_order", "hessian_free"] = "first_order"
    inner_learning_rate: Positive = 0.01
    difference: Positive = 1e-3
    adapt_steps: int = Field(default=1, ge=0)


class ReptileMethod(MethodSettings):
    """Meta-learning: train as FedAvg does, serve after a few local steps."""

    kind: Literal["reptile"] = "reptile"
    adapt_steps: int = Field(default=5, ge=0)
    adapt_learning_rate: Positive = 0.01


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
]
