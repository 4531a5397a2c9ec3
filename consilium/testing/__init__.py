"""Contract tests for parts of one's own: each function returns a test that a file of tests gives a name.

    from consilium.testing import method_contract

    test_my_method = method_contract("my_method")

The laws are those that the built-in parts are held to, and the same code.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

pytest.register_assert_rewrite(
    *(
        f"consilium.testing.{name}"
        for name in ("methods", "strategies", "weightings", "models", "metrics", "readers", "parts")
    )
)

# Imported below, as pytest rewrites the assertions of modules that are not imported yet.
from consilium.testing import methods, metrics, models, parts, readers, strategies, weightings  # noqa: E402 # see above
from consilium.testing.method_cases import SHAPES, legal  # noqa: E402 # see above
from consilium.testing.parts import every  # noqa: E402 # see above
from consilium.testing.readers import Write  # noqa: E402 # see above

__all__ = [
    "every",
    "method_contract",
    "metric_contract",
    "model_contract",
    "reader_contract",
    "strategy_contract",
    "task_contract",
    "weighting_contract",
]

Law = Callable[..., None]
Test = Callable[..., None]


def method_contract(*names: str) -> Test:
    """Return the test of everything that methods must hold, on each small model that a study may have them with."""
    cases = list(_as_parts("methods", names))
    for name in names:
        fitting = [model for model in sorted(SHAPES) if legal(name, model)]
        if not fitting:
            raise ValueError(f"the rules refuse method '{name}' with every model, so there is nothing to test")
        cases += [(law, (name, model)) for model in fitting for law in methods.LAWS]
        cases += [
            (law, (name, model)) for model in fitting if model in methods.LONG_MODELS for law in methods.LONG_LAWS
        ]
    return _test(cases)


def strategy_contract(*names: str) -> Test:
    """Return the test of everything that strategies must hold."""
    return _test([*_as_parts("strategies", names), *((law, (name,)) for name in names for law in strategies.LAWS)])


def weighting_contract(*names: str) -> Test:
    """Return the test of everything that factors of the weights must hold."""
    return _test([*_as_parts("weightings", names), *((law, (name,)) for name in names for law in weightings.LAWS)])


def model_contract(*names: str) -> Test:
    """Return the test of everything that models must hold."""
    return _test([*_as_parts("models", names), *((law, (name,)) for name in names for law in models.LAWS)])


def metric_contract(*names: str) -> Test:
    """Return the test of everything that metrics must hold."""
    return _test([*_as_parts("metrics", names), *((law, (name,)) for name in names for law in metrics.LAWS)])


def reader_contract(name: str, write: Write) -> Test:
    """Return the test of everything that readers must hold.

    Args:
        write: writes examples into a folder, and returns `[data]` of a site.toml and `[task]` of a study.
    """
    return _test([*_as_parts("readers", [name]), *((law, (write,)) for law in readers.LAWS)])


def task_contract(*names: str) -> Test:
    """Return the test of everything that tasks must hold; the rest is its reader's."""
    return _test(list(_as_parts("tasks", names)))


def _as_parts(group: str, names: Iterable[str]) -> Iterable[tuple[Law, tuple[Any, ...]]]:
    """Yield the laws of parts of packages, for those that are not built in."""
    own = [name for name in names if not parts.is_built_in(group, name)]
    return ((law, (group, name)) for name in own for law in parts.LAWS)


def _test(cases: list[tuple[Law, tuple[Any, ...]]]) -> Test:
    named = [
        pytest.param(law, given, id="-".join([*(one for one in given if isinstance(one, str)), law.__name__]))
        for law, given in cases
    ]

    def test(law: Law, given: tuple[Any, ...]) -> None:
        """Hold one law: its docstring says which."""
        law(*given)

    parametrised: Test = pytest.mark.parametrize(("law", "given"), named)(test)
    return parametrised
