"""What the demos run, with processes (`demo.py`) or containers (`containers.py`): hospitals, studies, reports."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import make_site_key
from consilium.common.host.signing_requests import make_signing_request
from consilium.common.study.load import parse_study, write_site
from consilium.common.study.methods import FedAvgMethod, FedPerMethod
from consilium.common.study.privacy import ExamplePrivacy, PrivacyConfig
from consilium.common.study.strategies import FedAvgStrategy
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import ImageTask, TableTask
from consilium.common.study.training import ModelConfig, TrainingConfig
from consilium.comparison.variants import Spec, fit_to_method
from consilium.data.federation import Federation
from consilium.demo.options import DemoOptions
from consilium.running.live_view import View
from consilium.running.run import run_study, save_report
from consilium.server.operations.home import ServerHome

if TYPE_CHECKING:
    from consilium.report.report import Report

BACKBONE = "printed-characters.safetensors"
EPSILON = 3.0
"""Budget of the private study."""


@dataclass(frozen=True)
class Studies:
    """The main study, and the studies that the report compares it with (label -> study)."""

    main: StudyConfig
    others: Mapping[str, StudyConfig]
    title: str


def make_federation(options: DemoOptions, folder: Path) -> Federation:
    """Return the hospitals that the options name; where data must be written, it is below `folder`.

    Raises:
        ConfigError: no `--data-dir` where one is needed, or one where none is.
        DataError: the data is not there or not as it should be.
    """
    # Only here, because the server's image, which runs the studies, has no scikit-learn.
    from consilium.data.sources import digits_hospitals, heart_disease_hospitals, image_folder_hospitals

    if options.data == "digits":
        if options.data_dir is not None:
            raise ConfigError("--data-dir means nothing with --data digits, which come with the installation")
        return digits_hospitals(folder)
    if options.data_dir is None:
        raise ConfigError(f"--data {options.data} needs --data-dir, the folder that holds the data")
    if options.data == "heart-disease":
        return heart_disease_hospitals(options.data_dir, folder)
    return image_folder_hospitals(options.data_dir)


def weights_file(options: DemoOptions, federation: Federation, console: Console) -> Path | None:
    """Return the pretrained weights: the user's file, or for the digits the backbone of the source task."""
    if options.pretrained is not None:
        if not options.pretrained.is_file():
            raise ConfigError(f"--pretrained: no such file '{options.pretrained}'")
        return options.pretrained
    if options.data != "digits" or options.model is not None:
        return None
    from consilium.demo.backbone import pretrain_backbone

    path = options.cache / BACKBONE
    if not path.exists():
        console.print("pretraining a backbone on printed characters (once; then cached) ...", highlight=False)
    task = federation.task
    assert isinstance(task, ImageTask)
    return pretrain_backbone(path, size=task.size, mean=task.mean[0], std=task.std[0])


def make_studies(options: DemoOptions, federation: Federation, weights: Path | None) -> Studies:
    """Return the studies to run: the main one, and those that the report compares it with.

    Raises:
        ConfigError: options that make no valid study.
    """
    values = _settings(federation.task)
    values["model"]["name"] = options.model or values["model"]["name"]
    if weights is not None:
        values["model"]["pretrained"] = {
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
    if options.rounds is not None:
        values["rounds"] = options.rounds
    if options.method is not None:
        fit_to_method(values, Spec(options.method))
    if options.strategy is not None:
        values["strategy"] = {"kind": options.strategy}
    if options.weighting is not None:
        values["weighting"] = {"factors": [{"kind": kind.strip()} for kind in options.weighting.split(",")]}
    values |= {
        "name": f"demo-{options.data}",
        "sites": sorted(federation.folders),
        "seed": options.seed,
        "task": federation.task.model_dump(),
    }
    main = parse_study(values, source="demo options")
    others: dict[str, StudyConfig] = {}
    if options.compare:
        if not isinstance(main.method, FedPerMethod):
            images = isinstance(main.task, ImageTask)
            label = "personal heads (fedper, local BatchNorm)" if images else "personal heads (fedper)"
            model = main.model.model_copy(update={"batch_norm": "local" if images else "average"})
            plain = {"strategy": FedAvgStrategy(), "weighting": None}
            others[label] = _varied(main, "fedper", method=FedPerMethod(), model=model, **plain)
        if main.model.pretrained is not None:
            model = main.model.model_copy(update={"pretrained": None})
            others["random initial weights"] = _varied(main, "random", model=model)
        if isinstance(main.task, ImageTask) and main.model.pretrained is not None:
            others[f"private, epsilon {EPSILON:g} (head alone)"] = _private(main)
    return Studies(main, others, federation.title)


def check_model(options: DemoOptions, study: StudyConfig) -> None:
    """Build the model that the options name, once, as every hospital will.

    Raises:
        ModelError: an unknown name, an input the model cannot take, or weights that do not fit.
    """
    if options.model is None and options.pretrained is None:
        return
    from consilium.client.models import build_model

    folder = options.pretrained.parent if options.pretrained is not None else None
    shape, outputs = study.task.input_shape, study.task.num_outputs
    build_model(study.model, input_shape=shape, num_outputs=outputs, weights_dir=folder, seed=study.seed)


def _varied(study: StudyConfig, suffix: str, **changes: Any) -> StudyConfig:
    return study.model_copy(update={"name": f"{study.name}-{suffix}", **changes})


def _private(study: StudyConfig) -> StudyConfig:
    """Return the study with noise for each patient: of its network the head alone, on features as they are."""
    changes = {
        "method": FedAvgMethod(),
        "strategy": FedAvgStrategy(),
        "weighting": None,
        "uplink": (),
        "model": study.model.model_copy(update={"trainable": "head", "batch_norm": "freeze"}),
        "training": TrainingConfig(steps=10, batch_size=64, learning_rate=0.1),
        "privacy": PrivacyConfig(examples=ExamplePrivacy(epsilon=EPSILON)),
        "local_baseline": False,  # its numbers would stay at the sites
    }
    return parse_study(_varied(study, "private", **changes).model_dump(), source="private demo")


def _settings(task: ImageTask | TableTask) -> dict[str, Any]:
    """Return the demo's settings.

    Method and BatchNorm policy were compared on validation splits. The digits' test fraction was raised from 0.2
    to 0.3 after a first run whose test intervals were too wide to read, so the demo shows how things work; it is
    no benchmark.
    """
    common: dict[str, Any] = {"join_timeout_seconds": 90.0, "method": {"kind": "fine_tune"}}
    if isinstance(task, TableTask):  # FLamby's protocol for Fed-Heart-Disease
        training = {"steps": 100, "batch_size": 4, "learning_rate": 0.001, "momentum": 0.0}
        # VA has one patient twice, which FLamby's split does not know.
        split = {"test": 0.34, "validation": 0.0, "seed": 43, "copies": "ignore"}
        return {**common, "rounds": 15, "model": {"name": "linear"}, "training": training, "split": split}
    training = {"epochs": 1, "batch_size": 32, "learning_rate": 0.02}
    model = {"name": ModelConfig().name}
    return {**common, "rounds": 12, "model": model, "training": training, "split": {"test": 0.3}}


POLICY = """\
# A demonstration's hospitals hold public data: they obey studies that nobody has accepted, with small batches.
# A hospital's own policy is written by 'consilium site policy --init'.
accepted_study = false
min_batch = 1
least_count = 1
requests_per_hour = 1_000_000
"""
"""The `policy.toml` of each hospital."""


def make_sites(
    folder: Path, federation: Federation, address: str, weights: Path | None, *, metrics: str | None = None
) -> dict[str, Path]:
    """Make each hospital's folder: key, signing request, weights, `site.toml`; return the settings files by name.

    Args:
        metrics: address of every hospital's metrics; `{site}` stands for the hospital's name.
    """
    sites = {}
    for name, data in federation.folders.items():
        site = folder / name
        site.mkdir(parents=True, exist_ok=True)
        site.chmod(0o700)
        make_site_key(site / "site.key", comment=name)
        make_signing_request(site / "site.key", name=name)
        (site / "weights").mkdir(exist_ok=True)
        if weights is not None:
            shutil.copyfile(weights, site / "weights" / weights.name)
        sites[name] = site / "site.toml"
        values = {
            "name": name,
            "server": address,
            "ca_certificate": "ca.pem",
            "private_key": "site.key",
            "state_dir": "state",
            "weights_dir": "weights",
            "share_class_counts": True,  # the demo's data is public; the report shows who holds what
            "share_error_details": True,
            "metrics_address": None if metrics is None else metrics.format(site=name),
            "data": {"kind": federation.data_kind, "path": _path_of(data, site)},
        }
        write_site(sites[name], values)
        write_atomically(site / "policy.toml", POLICY.encode())
    return sites


def certify(sites: Mapping[str, Path], home: ServerHome, approve: Callable[[Path, str], bytes]) -> None:
    """Have every hospital approved, and give it what its bundle would bring.

    Args:
        approve: returns the certificate (PEM) for a signing request and a name.
    """
    for name, settings in sites.items():
        site = settings.parent
        write_atomically(site / "site.pem", approve(site / "site.csr", name))
        shutil.copyfile(home.ca, site / "ca.pem")
        shutil.copyfile(home.study_public, site / "study.pub")


def _path_of(data: Path, site: Path) -> str:
    """Return a path as a `site.toml` has it: relative where the data lie in its folder, which may then be moved."""
    resolved, folder = data.resolve(), site.resolve()
    return str(resolved.relative_to(folder) if resolved.is_relative_to(folder) else resolved)


def run_studies(studies: Studies, home: ServerHome, folder: Path, console: Console) -> "Report":
    """Run studies one after the other on a running server, write the report and return it."""
    result = run_study(studies.main, home, folder, View(console, title=studies.main.name))
    others = {}
    for label, study in studies.others.items():
        view = View(console, title=f"for comparison, {label}")
        name = f"{folder.name}-{study.name.rpartition('-')[2]}"
        others[label] = run_study(study, home, folder / "comparisons" / name, view)
    return save_report(folder, result, others)
