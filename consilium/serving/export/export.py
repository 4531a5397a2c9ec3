"""Exports a served model: makes the file, holds it to the model, makes it smaller, and writes it all into a folder."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

import consilium.common
from consilium.client.served.load import ServedModel
from consilium.common.errors import ConfigError, StateError, clean
from consilium.common.host.extras import check_extra
from consilium.common.host.files import write_atomically
from consilium.common.model import WEIGHTS
from consilium.serving.export import onnx_model, program, pruning
from consilium.serving.export.check import answered, batch_of, check, runtime_of
from consilium.serving.export.int8 import int8_of
from consilium.serving.export.measuring import decisions_changed, difference, judged, measured
from consilium.serving.export.network import network_of
from consilium.serving.export.readme import readme_of
from consilium.serving.export.result import Check, Export, FileFacts, Form, Int8
from consilium.serving.export.rows import Material, Rows, of_data, of_random, of_site
from consilium.serving.own_rows import parts_of
from consilium.serving.question import load, title_of

ONNX, SMALL, PROGRAM = "model.onnx", "model.int8.onnx", "model.pt2"
RECORD, README, PICTURE = "export.json", "README.md", "pruning.svg"
"""Files of an export."""
FULL_MATRICES = (
    "zeros make no answer faster: kernels for full matrices compute them too; only a compressed file is smaller"
)

LARGER = "int8 is larger here: in a model of so few weights the operators outweigh them; model.onnx is the one to use"


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Args:
        form: `onnx` or `torch-export`.
        int8: also write the graph in int8.
        prune: share of the weights to strike out; None: none.
        curve: measure the model with more and more of its weights struck out.
        data, site: labelled rows, or the settings of the site whose rows are used; not both.
        group: what says whose a row of `data` is.
    """

    form: Form
    int8: bool = False
    prune: float | None = None
    curve: bool = False
    data: Path | None = None
    site: Path | None = None
    group: str | None = None

    def check(self) -> None:
        """Refuse what does not go together, before anything is read.

        Raises:
            ConfigError: it says what, and what to do.
        """
        if self.data is not None and self.site is not None:
            raise ConfigError("--data and --site: give one of them: labelled rows, or a site's own")
        if self.group is not None and self.data is None:
            raise ConfigError("--group says whose a row of --data is: give --data too; a site's own rows know it")
        if self.int8 and self.form != "onnx":
            raise ConfigError(f"--int8: only ONNX has it here, got --to {self.form}; give --to onnx")
        if self.prune is not None:
            pruning.check_share(self.prune)
        for name, asked in {"--int8": self.int8, "--prune-curve": self.curve}.items():
            if asked and self.data is None and self.site is None:
                raise ConfigError(
                    f"{name} needs rows with labels: --site SITE.TOML for the site's own, or --data with others"
                )
        if self.curve:
            check_extra("the picture of --prune-curve", "report")


@dataclass(frozen=True, eq=False)
class Made:
    """An export that is done, not written yet: what is known of it, and the content of its files by name."""

    export: Export
    contents: dict[str, bytes]


def check_out(out: Path) -> None:
    """Refuse a folder with something in it.

    Raises:
        ConfigError: there is something.
        StateError: it cannot be listed.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out: '{clean(str(out))}' is there already; name a new or an empty folder")
    except OSError as error:
        raise StateError(f"--out: cannot list '{clean(str(out))}': {error.strerror or error}") from error


def export_model(path: Path, wanted: Wanted, *, weights_dir: Path | None = None) -> Made:
    """Return a model in another form, checked; nothing is written.

    Raises:
        ConfigError: what is wanted does not go together.
        ModelError: there is no such model, the form cannot hold it, or the file answers otherwise than the model.
        DataError: the rows cannot be used.
    """
    wanted.check()
    with parts_of(wanted.site):
        folder, model = load(path, weights_dir=weights_dir)
    title = title_of(model, folder)
    material = _material(model, wanted)
    curve = pruning.curve(model, _labelled(material), pruning.SHARES) if wanted.curve else ()
    facts = None
    if wanted.prune is not None:
        whole, model = model, pruning.pruned(model, wanted.prune)
        facts = pruning.facts(model, wanted.prune, material.measured, whole=whole)
    made = (
        _onnx(model, material, title, int8=wanted.int8) if wanted.form == "onnx" else _program(model, material, title)
    )
    if curve:
        from consilium.serving.export.pruning_picture import picture_of

        made.contents[PICTURE] = picture_of(curve)
    export = made.export.model_copy(
        update={
            "pruned": facts,
            "pruning": curve,
            "files": {name: _facts(content) for name, content in made.contents.items()},
            "notes": (*material.notes, *made.export.notes, *((FULL_MATRICES,) if facts or curve else ())),
        }
    )
    return Made(export, made.contents)


def write_export(made: Made, out: Path) -> None:
    """Write an export into its folder, `export.json` last.

    Raises:
        StateError: the folder cannot be written.
    """
    for name, content in made.contents.items():
        write_atomically(out / name, content)
    write_atomically(out / README, readme_of(made.export).encode())
    write_atomically(out / RECORD, made.export.model_dump_json(indent=1).encode() + b"\n")


def _material(model: ServedModel, wanted: Wanted) -> Material:
    if wanted.site is not None:
        return of_site(model, wanted.site)
    return of_random(model) if wanted.data is None else of_data(model, wanted.data, group=wanted.group)


def _labelled(material: Material) -> Rows:
    assert material.measured is not None
    return material.measured


def _onnx(model: ServedModel, material: Material, title: str, *, int8: bool) -> Made:
    record = model.record
    network = network_of(model.module, record.task.input_shape, name=title)
    graph = onnx_model.onnx_of(model, network)
    compared = check(runtime_of(graph, record), model, material.checked, file=ONNX)
    contents = {ONNX: graph.SerializeToString()}
    inputs, outputs = onnx_model.described(graph)
    small = None
    if int8:
        assert material.calibration is not None
        lesser = onnx_model.onnx_of(model, int8_of(network, material.calibration.prepared.x, name=title))
        contents[SMALL] = lesser.SerializeToString()
        small = _compared(graph, lesser, model, material)
    known = _known(model, "onnx", title, compared, inputs, outputs, int8=small)
    if small is not None and small.share_of_size > 1:
        known = known.model_copy(update={"notes": (LARGER,)})
    return Made(known, contents)


def _compared(graph: ModelProto, lesser: ModelProto, model: ServedModel, material: Material) -> Int8:
    rows, task = _labelled(material), model.record.task
    asked, batch = [runtime_of(one, model.record) for one in (graph, lesser)], batch_of(rows, task)
    before, after = (judged(answered(ask, rows.feeds, batch=batch), rows, task) for ask in asked)
    one, other = (answered(ask, rows.feeds, batch=batch) for ask in asked)
    assert material.calibration is not None
    return Int8(
        share_of_size=lesser.ByteSize() / graph.ByteSize(),
        calibration=f"{material.calibration.what} ({len(material.calibration)})",
        before=measured(before, rows, task),
        after=measured(after, rows, task),
        difference=difference(after, before),
        changed=decisions_changed(one, other, task),
    )


def _program(model: ServedModel, material: Material, title: str) -> Made:
    content, rows = program.program_of(model, name=title), material.checked
    alike = Rows(rows.what, {"inputs": rows.raw}, rows.raw, rows.prepared)
    compared = check(program.loaded(content), model, alike, file=PROGRAM)
    inputs, outputs = program.described(model)
    made = _known(model, "torch-export", title, compared, dict(inputs), dict(outputs))
    note = "torch.export.load runs code that a changed file may hold: load only files that you trust as a program"
    return Made(made.model_copy(update={"notes": (note,)}), {PROGRAM: content})


def _known(
    model: ServedModel,
    form: Form,
    title: str,
    compared: Check,
    inputs: dict[str, str],
    outputs: dict[str, str],
    int8: Int8 | None = None,
) -> Export:
    record = model.record
    return Export(
        form=form,
        model=title,
        study=record.provenance.study,
        weights_sha256=record.files.get(WEIGHTS),
        consilium=consilium.common.__version__,
        files={},
        inputs=inputs,
        outputs=outputs,
        classes=record.classes,
        labels=record.task.label_names,
        check=compared,
        int8=int8,
    )


def _facts(content: bytes) -> FileFacts:
    return FileFacts(
        bytes=len(content), compressed=len(zlib.compress(content, 9)), sha256=hashlib.sha256(content).hexdigest()
    )
