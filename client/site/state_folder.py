"""What a site keeps on its own disk between rounds; atomic, checked when read, never in a message.

One folder per study and run: `study.json` is the study that the run began with, `scale.json` the scale of its inputs,
and `manifest.json`, which is kept twice, names rounds' safetensors files with their sha256: the last round whose update
counted at the server, as far as this site knows, and the round after it that was answered last. The next plan says
which of the two is in force: a reply that was lost or rejected, and a round that is asked again (the server restarted
before its checkpoint), leave no trace. Two that counted before are kept for a server that goes back to an earlier
checkpoint, and for a file that is damaged; another one is that of the best round, where a study ends with its model.
"""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load

from consilium.client.site.kept import Kept
from consilium.client.site.manifest import (
    MANIFEST,
    PRIVATE,
    Entry,
    Manifest,
    file_of,
    keep_in_memory,
    kept_in_memory,
    kept_twice,
    read_manifest,
    readable,
    write_manifest,
)
from consilium.common.codecs import Payload, form_of
from consilium.common.codecs.container import parts
from consilium.common.errors import Damaged, ProtocolError, StateError, clean
from consilium.common.host.files import check_writable, write_atomically
from consilium.common.host.twice import write_twice
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import ROUNDS_BACK, study_json
from consilium.common.study.record import Record
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Weights

TEST_SCORES = "test-scores.safetensors"
"""File of a run's folder: the logits of every test example, which never leave the site."""
MODELS = "models"
"""Folder of a run's folder: a model's folder for each that the site's settings ask for."""
STUDY = "study.json"
"""File of a run's folder: the study as this site saw it in the handshake."""
SCALE = "scale.json"
"""File of a run's folder: the scale of its inputs, where the handshake settled it."""


class _ScaleFile(Record):
    scale: Scale | None


@dataclass(frozen=True)
class StateFolder:
    """The personal state of one site in one run of one study."""

    path: Path
    site: str
    data: str = ""
    """Digest of the site's split data; a run whose data changed is not continued."""

    @classmethod
    def of(cls, root: Path, *, study: str, run: str, site: str) -> "StateFolder":
        """Return the folder for a study's run below the site's `state_dir`."""
        return cls(root / study / run, site)

    def check(self) -> None:
        """Check that it can be written to.

        Raises:
            StateError: it cannot.
        """
        check_writable(self.path, what=f"site '{self.site}': state folder")

    def save_study(self, study: StudyConfig) -> None:
        """Keep the study that this run began with: later plans name it by its digest.

        Raises:
            ProtocolError: the run has trained another study here, whose memory this one might send.
            StateError: the folder is unwritable or the disk is full.
        """
        path, content = self.path / STUDY, study_json(study).encode()
        if path.is_file() and path.read_bytes() != content and self._manifest().rounds:
            raise ProtocolError(
                f"site '{self.site}': run '{self.path.name}' has trained another study than the one asked for now; "
                "start a new run"
            )
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content, mode=PRIVATE)

    def load(self, round_number: int | None, *, known: Mapping[str, Kept] | None = None) -> Kept | None:
        """Return what was kept after a round; None if it is not here, empty if no round is named.

        Args:
            round_number: the round of this site's last update that counted, None before the first.
            known: states still in memory, by the sha256 that `save` returned; these are not read again.

        Raises:
            Damaged: the state's file is not there, or not what was written.
            StateError: it is of another site, or the data changed since.
        """
        entries = {entry.round: entry for entry in self._manifest().rounds}
        if round_number is None:
            return Kept()
        if (entry := entries.get(round_number)) is None:
            return None
        return self._load(entry, known or {})

    def load_earlier(self, round_number: int, *, known: Mapping[str, Kept]) -> tuple[int, Kept] | None:
        """Return the newest whole state of an update that counted before a round's, with its round; None without one.

        Raises:
            StateError: as `load`.
        """
        for entry in sorted(self._manifest().rounds, key=lambda entry: -entry.round):
            if entry.round < round_number:
                with contextlib.suppress(Damaged):
                    return entry.round, self._load(entry, known)
        return None

    def _load(self, entry: Entry, known: Mapping[str, Kept]) -> Kept:
        if entry.sha256 in known:
            return known[entry.sha256]
        path = self.path / entry.file
        if (held := kept_in_memory(path)) is not None:
            return held
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Damaged(f"site '{self.site}': cannot read '{path}': {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise Damaged(f"site '{self.site}': '{path}' is damaged: its sha256 is not the one in the manifest")
        with readable(path, site=self.site):
            arrays = load(content)
            kept = Kept.from_arrays(arrays)
        if kept.to_arrays().keys() != arrays.keys():
            raise StateError(
                f"site '{self.site}': '{path}' was written by another release of consilium: finish the run with that "
                "release, or start a new run"
            )
        return kept

    def save(self, state: Kept, *, round_number: int, accepted: int | None, best: int | None = None) -> str:
        """Write what is kept after a round and return its sha256; after a crash the state before it is still in force.

        Args:
            accepted: the round that this one went on from; its state is kept, and those of two that counted before.
            best: another round whose state is kept; None: of no other.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        file = file_of(round_number)
        in_memory = keep_in_memory(self.path / file, state)
        sha = secrets.token_hex(32) if in_memory else self._write(self.path / file, state)
        before = [old for old in self._manifest().rounds if old.round != round_number]
        counted = sorted((old for old in before if old.round <= (accepted or 0)), key=lambda old: old.round)
        kept = counted[-ROUNDS_BACK - 1 :]
        kept += [old for old in before if old.round == best and old not in kept]
        entries = (*kept, Entry(round=round_number, file=file, sha256=sha))
        write_manifest(self.path, Manifest(site=self.site, data=self.data, rounds=entries))
        return sha

    def _write(self, path: Path, state: Kept) -> str:
        sha, arrays = hashlib.sha256(), state.to_arrays()

        def pieces() -> Iterator[Payload]:
            for piece in parts(arrays, form_of(arrays)):
                sha.update(piece)
                yield piece

        write_atomically(path, pieces(), mode=PRIVATE)
        return sha.hexdigest()

    def save_scale(self, scale: Scale | None) -> None:
        """Keep the scale of this run's inputs; None: by this site's own training rows.

        Raises:
            ProtocolError: the run has trained with another scale.
            StateError: what was kept cannot be read, the folder is unwritable or the disk is full.
        """
        path = self.path / SCALE
        if self._kept(path) is not None and self.load_scale() != scale and self._manifest().rounds:
            raise ProtocolError(
                f"site '{self.site}': run '{self.path.name}' has trained with another scale of its inputs than the one "
                "that came now; start a new run"
            )
        write_twice(path, _ScaleFile(scale=scale).model_dump_json().encode(), mode=PRIVATE)

    def load_scale(self) -> Scale | None:
        """Return the scale of this run's inputs; None: by this site's own training rows.

        Raises:
            ProtocolError: none was agreed on.
            StateError: what was kept cannot be read.
        """
        path = self.path / SCALE
        if (content := self._kept(path)) is None:
            raise ProtocolError(
                f"site '{self.site}': no scale of the inputs was agreed on in run '{self.path.name}', which comes "
                "before its first round"
            )
        with readable(path, site=self.site):
            return _ScaleFile.model_validate_json(content).scale

    def save_counts(self, counts: TestCounts, *, round_number: int) -> None:
        """Keep the counts on the test split, so that it is read once however often a finish is asked for."""
        content = json.dumps({"round": round_number, "test": counts.model_dump()}).encode()
        write_twice(self.path / "test.json", content, mode=PRIVATE)

    def load_counts(self, round_number: int) -> TestCounts | None:
        """Return the counts kept at this run's finish, None if there was none.

        Raises:
            StateError: it is there, but damaged, or the data changed since.
        """
        path = self.path / "test.json"
        if (content := self._kept(path)) is None:
            return None
        self._manifest()
        with readable(path, site=self.site):
            kept = json.loads(content)
            return TestCounts.model_validate(kept["test"]) if kept["round"] == round_number else None

    def save_scores(self, scores: Weights) -> None:
        """Keep every model's logits `(N, outputs)` of the test examples, and their classes, for this site alone."""
        write_atomically(self.path / TEST_SCORES, parts(scores, form_of(scores)), mode=PRIVATE)

    @property
    def models(self) -> Path:
        """The folder with a folder for each model that this site may serve."""
        return self.path / MODELS

    def _kept(self, path: Path) -> bytes | None:
        return kept_twice(path, site=self.site)

    def _manifest(self) -> Manifest:
        if (manifest := read_manifest(self.path, site=self.site)) is None:
            return Manifest(site=self.site, data=self.data)
        if manifest.site != self.site:
            path = self.path / MANIFEST
            raise StateError(f"'{path}' belongs to site '{clean(manifest.site)}', expected '{self.site}'")
        if manifest.data != self.data:
            raise StateError(
                f"site '{self.site}': the data changed since this run began, so that test examples could have been "
                "trained on; put the data back, or start a new run"
            )
        return manifest
