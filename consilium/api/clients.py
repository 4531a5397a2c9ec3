"""Clients of a simulation, by their names: what each holds, as arrays or as a data frame."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from consilium.api.arrays import Array, Arrays, array_of
from consilium.api.loaders import pairs_of
from consilium.common.errors import ConfigError
from consilium.common.study.names import check_site_name

Clients: TypeAlias = Mapping[str, Any] | Iterable[tuple[str, Any]]
"""Per client `(x, y)`, `(x, y, patients)`, a torch Dataset or DataLoader, or a pandas DataFrame; a mapping, or pairs as
`frame.groupby("hospital")` gives them.
"""


Held = Arrays | Any
"""What one client holds: arrays, or a DataFrame."""


def named(clients: Clients) -> dict[str, Any]:
    """Return the clients by name, in their order.

    Raises:
        ConfigError: there is none, one name is there twice, or one cannot be a site's.
    """
    if isinstance(clients, Mapping):
        pairs = list(clients.items())
    elif isinstance(clients, Iterable) and not isinstance(clients, str | bytes) and not hasattr(clients, "columns"):
        pairs = [_pair(one) for one in clients]
    else:
        raise ConfigError(
            f"clients: expected a mapping such as {{'berlin': (x, y), 'lyon': (x, y)}}, got {_typed(clients)}"
        )
    if not pairs:
        raise ConfigError("clients: there is none, expected one or more by their names")
    found: dict[str, Any] = {}
    for name, held in pairs:
        if not isinstance(name, str):
            raise ConfigError(f"clients: a name must be text, got {_typed(name)}")
        check_site_name(name, what="clients: a name")
        if name in found:
            raise ConfigError(f"clients: '{name}' is there twice, expected each name once")
        found[name] = held
    return found


def _pair(one: Any) -> tuple[Any, Any]:
    if not isinstance(one, tuple) or len(one) != 2:
        raise ConfigError(f"clients: expected pairs of a name and its data, got {_typed(one)}")
    return one


def is_frame(held: Any) -> bool:
    """Return whether it is a pandas DataFrame; pandas need not be installed."""
    return hasattr(held, "columns") and hasattr(held, "iloc")


def held_by(name: str, client: Any) -> Held:
    """Return what a client holds, read out of whatever it was given in.

    Raises:
        ConfigError: it is nothing that examples and labels can be read from, or the two have different lengths.
    """
    if is_frame(client):
        if not len(client):
            raise ConfigError(f"client '{name}': its DataFrame has no row, expected some")
        return client
    if isinstance(client, tuple) and len(client) in (2, 3):
        return _checked(name, *client)
    plain = type(client).__module__.partition(".")[0] in ("numpy", "builtins")
    if not plain and (hasattr(client, "__getitem__") or hasattr(client, "__iter__")):
        return _checked(name, *pairs_of(name, client))
    raise ConfigError(
        f"client '{name}': expected (x, y), a torch Dataset or DataLoader, or a DataFrame, got {_typed(client)}"
    )


def _checked(name: str, x: Any, y: Any, patients: Any = None) -> Arrays:
    inputs, labels = array_of(x, what=f"client '{name}': x"), array_of(y, what=f"client '{name}': y")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = "; one column per class? give the class numbers: y.argmax(1)" if labels.ndim == 2 else ""
        raise ConfigError(f"client '{name}': y has shape {labels.shape}, expected one label per example{hint}")
    if inputs.ndim < 2:
        raise ConfigError(
            f"client '{name}': x has shape {inputs.shape}, expected (N, features) or more; one feature is x[:, None]"
        )
    if len(inputs) != len(labels):
        raise ConfigError(f"client '{name}': x has {len(inputs)} examples, but y has {len(labels)} labels")
    if not len(inputs):
        raise ConfigError(f"client '{name}': has no example, expected some")
    owners = None if patients is None else array_of(patients, what=f"client '{name}': patients")
    if owners is not None and owners.shape != labels.shape:
        raise ConfigError(f"client '{name}': patients has shape {owners.shape}, expected one for each of {len(labels)}")
    return Arrays(_finite(name, inputs), labels, owners)


def _finite(name: str, x: Array) -> Array:
    if x.dtype.kind == "U":
        raise ConfigError(f"client '{name}': x holds texts, expected numbers; a table of both is given as a DataFrame")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).reshape(len(x), -1).any(axis=1).sum())
        raise ConfigError(
            f"client '{name}': x has NaN or infinite numbers in {bad} of {len(x)} examples: fill or leave them out "
            "(in a DataFrame missing='impute' does)"
        )
    return x


def _typed(value: object) -> str:
    return f"a value of type {type(value).__name__}"
