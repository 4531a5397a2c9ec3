"""Learn together without sharing data: personalised federated, transfer and meta-learning.

For Python: `import consilium as cs`. What is listed here is loaded when it is first used: a site's network process
imports this package too, and needs neither torch nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilium.api.comparing import Comparison as Comparison
    from consilium.api.comparing import compare as compare
    from consilium.api.devices import simulate_devices as simulate_devices
    from consilium.api.mathematics import fine_tune as fine_tune
    from consilium.api.mathematics import weighted_mean as weighted_mean
    from consilium.api.mathematics import weights as weights
    from consilium.api.result import Result as Result
    from consilium.api.runs import Round as Round
    from consilium.api.runs import rounds as rounds
    from consilium.api.runs import simulate as simulate
    from consilium.api.served import load_model as load_model
    from consilium.api.study import Study as Study
    from consilium.common import __version__ as __version__
    from consilium.common.errors import ConsiliumError as ConsiliumError

_PLACES = {
    "Comparison": "consilium.api.comparing",
    "ConsiliumError": "consilium.common.errors",
    "Result": "consilium.api.result",
    "Round": "consilium.api.runs",
    "Study": "consilium.api.study",
    "__version__": "consilium.common",
    "compare": "consilium.api.comparing",
    "fine_tune": "consilium.api.mathematics",
    "load_model": "consilium.api.served",
    "rounds": "consilium.api.runs",
    "simulate": "consilium.api.runs",
    "simulate_devices": "consilium.api.devices",
    "weighted_mean": "consilium.api.mathematics",
    "weights": "consilium.api.mathematics",
}
"""Where each name that this package offers is defined."""

__all__ = [  # they are found by __getattr__
    "Comparison",
    "ConsiliumError",
    "Result",
    "Round",
    "Study",
    "__version__",
    "compare",
    "fine_tune",
    "load_model",
    "rounds",
    "simulate",
    "simulate_devices",
    "weighted_mean",
    "weights",
]


if not TYPE_CHECKING:  # with it, a type checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        """Load a name when it is first used (PEP 562).

        Raises:
            ConfigError: it needs a package of one of our extras, which is not installed.
        """
        if name not in _PLACES:
            raise AttributeError(f"module 'consilium' has no attribute '{name}'; it has {', '.join(_PLACES)}")
        try:
            value = getattr(import_module(_PLACES[name]), name)
        except ModuleNotFoundError as error:
            from consilium.common.host.extras import EXTRAS, missing

            if (package := (error.name or "").partition(".")[0]) not in EXTRAS:
                raise
            raise missing(f"consilium.{name}", package) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
