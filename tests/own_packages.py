"""Packages of one's own, installed for a test: a module and the metadata that an installation leaves, in a folder."""

import base64
import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from consilium.common.study.packages import digest_of_package, offers
from consilium.common.study.parts import OwnPackage, package_of

METHOD = '''
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from consilium.client.methods import Budget, Outcome
from consilium.client.training.loop import train
from consilium.parts import MethodSettings, Part


class OursSettings(MethodSettings):
    """The head is personal, as in FedPer."""

    kind: Literal["ours"] = "ours"
    strength: float = Field(default=0.5, ge=0)


@dataclass(frozen=True)
class Ours:
    strength: float

    def shared(self, model):
        return frozenset(model.names) - model.head

    def train(self, model, memory, work):
        return Outcome(memory, train(model, work), metrics={"ours.strength": self.strength})

    def budget(self, work):
        return Budget(work)

    def personalise(self, model, memory, work):
        return model.module


PART = Part(OursSettings, Ours)
'''
"""The module of a package with a method `ours`."""


def install(
    folder: Path, entries: Mapping[str, Mapping[str, str]], modules: Mapping[str, str], *, name: str, version: str
) -> None:
    """Write modules and metadata of a package into a folder, as pip does.

    Args:
        entries: group without `consilium.` -> name -> `module:attribute`.
        modules: file name -> text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    groups = [
        f"[consilium.{group}]\n" + "".join(f"{k} = {v}\n" for k, v in one.items()) for group, one in entries.items()
    ]
    files = {
        **modules,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/entry_points.txt": "\n".join(groups),
    }
    rows = []
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
        sha = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{file},sha256={sha},{len(text.encode())}")
    (folder / about / "RECORD").write_text("\n".join([*rows, f"{about}/RECORD,,"]) + "\n", encoding="utf-8")


@contextmanager
def on_path(*folders: Path) -> Iterator[None]:
    """Let packages in these folders be installed here; what was imported from them is forgotten at the end."""
    before, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if any(file.startswith(str(folder)) for folder in folders):
                del sys.modules[name]


def installed(group: str, name: str) -> OwnPackage:
    """Return the package that offers a part, as a site.toml names it."""
    (offer,) = offers(group, name)
    assert digest_of_package(offer) == package_of(offer).sha256
    return package_of(offer)
