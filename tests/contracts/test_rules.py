"""Combinations that cannot be run are refused when the study is read, each with a sentence that says what to do."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from conftest import MakeSites, MakeStudy
from pydantic import TypeAdapter

from consilium.common.errors import ConfigError
from consilium.common.study.load import load_site
from consilium.common.study.methods import MethodConfig
from consilium.common.study.ranges import variants
from consilium.common.study.rules import RULES, problems
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import run_in_process

IMAGES = {"kind": "images", "classes": ["no", "yes"], "size": 8, "channels": 1}
PLAIN = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}
NUMBER = {"kind": "table", "label": "b", "regression": {"tolerance": 1.0}, "columns": {"a": {"kind": "number"}}}
PICTURES = {"kind": "images", "classes": ["no", "yes"]}
MASKS = {"kind": "segmentation", "classes": ["background", "liver"], "size": 32, "channels": 1}
TIMES = {"kind": "table", "survival": {"time": "t", "event": "e"}, "columns": {"a": {"kind": "number"}}}
SEVERAL = {"kind": "table", "labels": ["x", "y"], "columns": {"a": {"kind": "number"}}}
TEXTS = {"kind": "text", "classes": ["no", "yes"]}
PHONES = [{"name": "phones", "cohort": 5}]
NORTH = {"north": ["berlin", "lyon"]}
USERS = {"cohort": 60, "private": False}
EQUAL = {"factors": [{"kind": "size", "exponent": 0.0}]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "masks with a model of whole pictures": (
        {"task": MASKS, "model": {"name": "small_cnn"}},
        "model.name: model 'small_cnn' has one answer for a whole picture: choose 'unet', 'monai/unet', 'monai/basic",
    ),
    "classes with a model of masks": (
        {"task": PICTURES, "model": {"name": "unet"}},
        "model.name: model 'unet' answers for every pixel, but task.kind is 'images': choose another model",
    ),
    "masks that cannot be halved": (
        {"task": MASKS | {"size": 36}, "model": {"name": "unet"}},
        "task.size: model 'unet' halves pictures again and again, so their side must be a multiple of 8, got 36: set "
        "32",
    ),
    "masks with a metric of classes": (
        {"task": MASKS, "model": {"name": "unet"}, "metrics": ["auroc"]},
        "metrics: 'auroc' is not defined where the labels are masks; of these the mean Dice is measured anyway",
    ),
    "masks whose patients are hidden": (
        {"task": MASKS, "model": {"name": "unet"}, "privacy": {"examples": {"epsilon": 3}}},
        "privacy.examples adds noise to what leaves of test patients, and the mean Dice has no form with noise yet",
    ),
    "pieces of texts without their writers": (
        {
            "task": {"kind": "text", "next": "character", "length": 8},
            "model": {"name": "text_mean"},
            "privacy": {"examples": {"epsilon": 3}},
        },
        "privacy.examples promises something to each patient, but a text is cut into pieces, and nothing says whose",
    ),
    "texts with a model of tables": (
        {"task": TEXTS, "model": {"name": "mlp"}},
        "model.name: model 'mlp' reads no texts: choose 'text_mean'",
    ),
    "a model that knows too few tokens": (
        {"task": TEXTS, "model": {"name": "text_mean", "settings": {"vocabulary": 2}}},
        "model.settings.vocabulary: the model has vectors for 2 tokens, but task.tokens tells",
    ),
    "a folder of weights for another model": (
        {"model": {"name": "mlp", "pretrained": {"folder": "bert", "files": {"model.safetensors": 64 * "0"}}}},
        "model.pretrained.folder: is for model 'transformer', got 'mlp': give 'file' or 'weights'",
    ),
    "an adapter without a backbone": (
        {"model": {"name": "linear", "adapter": {"kind": "lora", "rank": 2}}},
        "model.adapter: model 'linear' is a head without a backbone: leave it out, or choose 'mlp'",
    ),
    "a model of series for a table": (
        {"task": NUMBER, "model": {"name": "gru"}},
        "model.name: model 'gru' reads series, but task.kind is 'table' with examples of shape [1]",
    ),
    "patients called by their times": (
        {
            "task": {"kind": "features", "shape": [4], "survival": {"time": "t", "event": "e"}},
            "model": {"name": "linear"},
            "split": {"group": "t"},
        },
        "split.group: column 't' is also a feature or the label of the task",
    ),
    "patients called by a channel": (
        {
            "task": {"kind": "series", "channels": ["a", "b"], "length": 4, "classes": ["no", "yes"]},
            "model": {"name": "gru"},
            "split": {"group": "b"},
        },
        "split.group: column 'b' is also a feature or the label of the task",
    ),
    "a summary of a column that is not there": (
        {"task": NUMBER | {"summary": {"columns": {"z": {"low": 0, "high": 1}}}}},
        "task.summary.columns: the task has no column 'z' to summarise, it has 'a', 'b'",
    ),
    "a summary of levels without pictures": (
        {"task": NUMBER | {"summary": {"pixels": {"mean": 0.5, "std": 0.2}}}},
        "task.summary.pixels: is for pictures, but task.kind is 'table': leave it out",
    ),
    "a summary of classes that do not add up": (
        {"task": PICTURES | {"summary": {"labels": {"no": 0.5, "yes": 0.1}}}},
        "task.summary.labels: the parts of the classes add up to 0.6, expected 1",
    ),
    "nothing for test": (
        {"split": {"test": 0.0}},
        "split.test is 0, so nothing could be said of any model: give it a part of each site's rows, e.g. 0.2, or name",
    ),
    "a head of several layers without features": (
        {"model": {"name": "linear", "head": [4]}},
        "model.head: model 'linear' has no features before its head: leave it out, or choose 'mlp'",
    ),
    "two heads' arrays of several layers": (
        {"model": {"name": "mlp", "head": [4]}, "method": {"kind": "fedrod"}},
        "model.head: method 'fedrod' adds two heads' arrays, which takes a head of one linear layer: leave it out",
    ),
    "two backbones joined in several layers": (
        {"model": {"name": "mlp", "head": [4]}, "method": {"kind": "fenda"}},
        "model.head: method 'fenda' joins the features of two backbones in one layer, which takes a head of one",
    ),
    "a metric of numbers for classes": (
        {"metrics": ["rmse"]},
        "metrics: 'rmse' is not defined where the labels are classes; of these there are auroc, average_precision, f1",
    ),
    "a metric of classes for a number": (
        {"task": NUMBER, "metrics": ["auroc"]},
        "metrics: 'auroc' is not defined where the labels are numbers; of these there are mae, rmse, r2",
    ),
    "metrics without validation rows": (
        {"metrics": ["auroc"], "split": {"validation": 0.0}},
        "metrics are measured on validation examples, but split.validation is 0",
    ),
    "a patient as a feature": (
        {"task": NUMBER, "split": {"group": "a"}},
        "split.group: column 'a' is also a feature or the label of the task: leave it out of task.columns",
    ),
    "parts by the label": ({"task": NUMBER, "split": {"parts": "b"}}, "split.parts: column 'b' is also a feature"),
    "patient and part in one column": (
        {"task": NUMBER, "split": {"group": "c", "parts": "c"}},
        "split.group and split.parts are both column 'c', expected two",
    ),
    "a pattern that could run for years": (
        {"task": PICTURES, "split": {"group": "^(a+)+$"}},
        "split.group: '^(a+)+$' is no pattern of file names, expected letters, digits",
    ),
    "votes over classes for a number": (
        {"task": NUMBER, "method": {"kind": "knn_per"}},
        "'knn_per' lets neighbours vote for a class, but this task's label is a number",
    ),
    "balanced classes of a number": (
        {"task": NUMBER, "method": {"kind": "fedrod"}},
        "'fedrod' balances classes, but this task's label is a number",
    ),
    "class counts of a number": (
        {"task": NUMBER, "weighting": {"factors": [{"kind": "feddisco"}]}},
        "the weighting needs class counts, but this task's label is a number",
    ),
    "distance of class counts of a number": (
        {"task": NUMBER, "weighting": {"factors": [{"kind": "divergence"}]}},
        "the weighting needs class counts, but this task's label is a number",
    ),
    "votes over classes for a time": (
        {"task": TIMES, "method": {"kind": "knn_per"}},
        "'knn_per' lets neighbours vote for a class, but this task's label is a time until an event",
    ),
    "class counts of times": (
        {"task": TIMES, "weighting": {"factors": [{"kind": "feddisco"}]}},
        "the weighting needs class counts, but this task's label is a time until an event",
    ),
    "a metric of classes for times": (
        {"task": TIMES, "metrics": ["auroc"]},
        "'auroc' is not defined where the labels are times until an event; of these the concordance index is measured",
    ),
    "balanced draws of times": (
        {"task": TIMES, "training": PLAIN | {"sampling": "balanced"}},
        "training.sampling = 'balanced' draws classes alike, and this task's label is none",
    ),
    "times with patients' privacy": (
        {
            "task": TIMES | {"scale": {"a": {"mean": 0.0, "std": 1.0}}},
            "privacy": {"examples": {"epsilon": 3}},
        },
        "privacy.examples clips the gradient of each patient, but with task.survival a patient's part of the loss ",
    ),
    "several labels with patients' privacy": (
        {
            "task": SEVERAL | {"scale": {"a": {"mean": 0.0, "std": 1.0}}},
            "privacy": {"examples": {"epsilon": 3}},
        },
        "privacy.examples adds noise to what leaves of test patients, and the mean AUROC has no form with noise yet",
    ),
    "class counts of several labels": (
        {"task": SEVERAL, "weighting": {"factors": [{"kind": "feddisco"}]}},
        "the weighting needs class counts, but this task's label is several labels at once",
    ),
    "scaffold's server half alone": (
        {"strategy": {"kind": "scaffold"}},
        "strategy 'scaffold' with method 'fedavg': set both",
    ),
    "scaffold's client half under a median": (
        {"method": {"kind": "scaffold"}, "strategy": {"kind": "median"}, "training": PLAIN},
        "strategy 'median' with method 'scaffold': set both",
    ),
    "feddyn's server half alone": (
        {"strategy": {"kind": "feddyn"}},
        "feddyn is a strategy and a method that belong together, got strategy 'feddyn' with method 'fedavg': set both",
    ),
    "feddyn's client half under fedexp": (
        {"method": {"kind": "feddyn"}, "strategy": {"kind": "fedexp"}},
        "strategy 'fedexp' with method 'feddyn': set both to 'feddyn'",
    ),
    "one half of each": (
        {"method": {"kind": "feddyn"}, "strategy": {"kind": "scaffold"}},
        "strategy 'scaffold' with method 'feddyn': set both to 'scaffold'",
    ),
    "feddyn with weights": (
        {"method": {"kind": "feddyn"}, "strategy": {"kind": "feddyn"}, "weighting": {}},
        "strategy 'feddyn' sets its own weights",
    ),
    "fednova from a model of the site's own": (
        {"strategy": {"kind": "fednova"}, "method": {"kind": "mr_mtl"}},
        "not defined for training.optimiser 'sgd' with method 'mr_mtl'",
    ),
    "local with a strategy": (
        {"method": {"kind": "local"}, "strategy": {"kind": "median"}},
        "method 'local' shares nothing",
    ),
    "local with a weighting": (
        {"method": {"kind": "local"}, "weighting": {}},
        "method 'local' shares nothing",
    ),
    "q-fedavg with momentum": (
        {"strategy": {"kind": "qfedavg"}},
        "strategy 'qfedavg' takes 1 / learning_rate for the slope of the loss, which holds for SGD without momentum: "
        "set training.optimiser = 'sgd' and training.momentum = 0",
    ),
    "q-fedavg with Adam": (
        {"strategy": {"kind": "qfedavg"}, "training": {"optimiser": "adam", "momentum": 0.0, "epochs": 1}},
        "strategy 'qfedavg' takes 1 / learning_rate for the slope of the loss",
    ),
    "hidden layers of a model that has none": (
        {"model": {"name": "linear", "hidden": [32]}},
        "model.hidden: model 'linear' has no hidden layers to choose: leave it out, or choose 'mlp' or 'mlp_bn'",
    ),
    "q-fedavg with weights": (
        {"strategy": {"kind": "qfedavg"}, "weighting": {}},
        "strategy 'qfedavg' sets its own weights",
    ),
    "scaffold with momentum": (
        {"method": {"kind": "scaffold"}, "strategy": {"kind": "scaffold"}},
        "method 'scaffold' is defined for plain SGD: set training.optimiser = 'sgd', training.momentum = 0",
    ),
    "per-fedavg with adam": (
        {"method": {"kind": "per_fedavg"}, "training": {**PLAIN, "optimiser": "adam"}},
        "method 'per_fedavg' is defined for plain SGD",
    ),
    "pfedme with weight decay": (
        {"method": {"kind": "pfedme"}, "training": {**PLAIN, "weight_decay": 0.1}},
        "method 'pfedme' is defined for plain SGD",
    ),
    "fednova with adam": (
        {"strategy": {"kind": "fednova"}, "training": {**PLAIN, "optimiser": "adam"}},
        "not defined for training.optimiser 'adam' with method 'fedavg'",
    ),
    "fednova with proximal steps": (
        {"strategy": {"kind": "fednova"}, "method": {"kind": "fedprox"}},
        "not defined for training.optimiser 'sgd' with method 'fedprox'",
    ),
    "fedbn with averaged BatchNorm": (
        {"task": IMAGES, "model": {"name": "small_cnn"}, "method": {"kind": "fedbn"}},
        "model.batch_norm is 'average': set model.batch_norm = 'local'",
    ),
    "krum with three sites": (
        {"strategy": {"kind": "krum"}},
        "strategy 'krum' with these settings needs at least 5 updates in a round, but a round of this study may have 3",
    ),
    "a trimmed mean that trims all": (
        {"strategy": {"kind": "trimmed_mean", "trim": 2}},
        "needs at least 5 updates in a round",
    ),
    "more sites than all": (
        {"over_selection": 0.3},
        "over_selection asks 0.3 more sites than cohort_fraction says, which is all of them",
    ),
    "slow updates of a secure sum let go": (
        {"over_selection": 0.3, "cohort_fraction": 0.9, "privacy": {"secure_aggregation": True, "bound": 1.0}},
        "over_selection lets the slowest updates of a round go, but secure sums",
    ),
    "directions in a secure sum": (
        {"privacy": {"secure_aggregation": True, "bound": 1.0}, "defence": {"against": 2}},
        "defence.against looks at each site's update, and in secure sums the server sees none by itself: leave it out",
    ),
    "lengths in a secure sum": (
        {"privacy": {"secure_aggregation": True, "bound": 1.0}, "defence": {"norm": {"kind": "median"}}},
        "defence.norm looks at each site's update, and in secure sums the server sees none by itself: leave it out",
    ),
    "a trimmed mean whose quorum is too small": (
        {"strategy": {"kind": "trimmed_mean"}, "quorum": 2},
        "needs at least 3 updates in a round, but a round of this study may have 2",
    ),
    "validation loss without validation": (
        {"weighting": {"factors": [{"kind": "loss"}]}, "split": {"validation": 0}},
        "the weighting needs update.loss on validation examples, but split.validation is 0",
    ),
    "size twice": (
        {"weighting": {"factors": [{"kind": "size"}, {"kind": "size"}]}},
        "'size' is there more than once",
    ),
    "feddisco beside size": (
        {"weighting": {"factors": [{"kind": "size"}, {"kind": "feddisco"}]}},
        "'feddisco' holds the size already",
    ),
    "fedce under momentum": (
        {"weighting": {"factors": [{"kind": "fedce"}]}, "strategy": {"kind": "fedavgm"}},
        "weighting 'fedce' takes a site's update out of the global weights again",
    ),
    "fedce under half a step": (
        {"weighting": {"factors": [{"kind": "fedce"}]}, "strategy": {"kind": "fedavg", "learning_rate": 0.5}},
        "weighting 'fedce' takes a site's update out of the global weights again",
    ),
    "control variates with a difference": (
        {
            "method": {"kind": "scaffold"},
            "strategy": {"kind": "scaffold"},
            "training": PLAIN,
            "downlink": [{"kind": "int8"}],
        },
        "send arrays along with the weights",
    ),
    "candidates beside a difference": (
        {"downlink": [{"kind": "int8"}], "weighting": {"factors": [{"kind": "auto"}]}},
        "send arrays along with the weights",
    ),
    "a minimum that cannot be": (
        {"weighting": {"minimum": 0.4}},
        "weighting.minimum: 0.4 for each of 3 sites is more than the whole",
    ),
    "a maximum that cannot be": (
        {"weighting": {"maximum": 0.3}},
        "weighting.maximum: 0.3 for each of 3 sites is less than the whole",
    ),
    "a bound on updates that nobody sees": (
        {"privacy": {"secure_aggregation": True}, "defence": {"norm": {"kind": "median"}}},
        "defence.norm = 'median' bounds each site's update, which privacy.secure_aggregation never shows the server",
    ),
    "a second bound on updates of hidden sites": (
        {"privacy": {"sites": {"noise": 5}}, "defence": {"norm": {"kind": "fixed", "bound": 1}}},
        "defence.norm = 'fixed' bounds an update once more than privacy.sites.clip",
    ),
    "noise for whole sites on a median": (
        {"privacy": {"sites": {"noise": 5}}, "strategy": {"kind": "median"}},
        "privacy.sites adds noise to the mean of the updates, but strategy 'median' takes more from them than their",
    ),
    "noise for whole sites of which some count more": (
        {"privacy": {"sites": {"noise": 5}}, "weighting": {"factors": [{"kind": "size", "exponent": 0.5}]}},
        "privacy.sites hides one site among others that count the same: set weighting.factors = [{ kind",
    ),
    "noise for whole sites of which there are few": (
        {"privacy": {"sites": {"noise": 5}}},
        "privacy.sites needs at least 50 updates in a round, but a round of this study may have 3",
    ),
    "noise for patients whose rows scale the inputs": (
        {"privacy": {"examples": {"epsilon": 3}}},
        "privacy.examples needs inputs that are scaled by fixed numbers, not by what the patients' rows have: give",
    ),
    "noise for patients who move others from part to part": (
        {"privacy": {"examples": {"epsilon": 3}}, "split": {"draw": "counts"}},
        "privacy.examples needs parts in which each patient is drawn by itself: with split.draw = 'counts' one patient",
    ),
    "noise for patients of whom a loss is told": (
        {"privacy": {"examples": {"epsilon": 3}}, "weighting": {"factors": [{"kind": "loss"}]}},
        "privacy.examples lets no measurement leave a site, but the weighting or strategy needs update.loss",
    ),
    "noise for patients whom a method sees without it": (
        {"privacy": {"examples": {"epsilon": 3}}, "method": {"kind": "moon"}},
        "method 'moon' compares each row's features with those of two other models, in a loss that has no noise, so it "
        "cannot be combined with privacy.examples",
    ),
    "noise for patients in fewer bits": (
        {"privacy": {"examples": {"epsilon": 3}}, "training": {"epochs": 1, "precision": "bfloat16"}},
        "privacy.examples clips gradients to a length, which is not exact in fewer bits: set training.precision =",
    ),
    "a sum of what must be seen one by one": (
        {"privacy": {"secure_aggregation": True}, "strategy": {"kind": "median"}},
        "privacy.secure_aggregation shows the server sums over sites alone, but strategy 'median' needs each update",
    ),
    "a sum of two sites": (
        {"privacy": {"secure_aggregation": True}, "sites": ["berlin", "lyon"]},
        "privacy.secure_aggregation needs 3 updates of the 2 sites that are asked in a round",
    ),
    "updates as they come from groups of devices": (
        {"groups": PHONES, "schedule": {"kind": "buffered", "size": 2}},
        "schedule = 'buffered' asks every site at once, but of a group only its cohort is asked in a round: set",
    ),
    "secure sums with devices that come and go": (
        {"groups": PHONES, "privacy": {"secure_aggregation": True}},
        "secure sums and noise of all sites are reckoned with the keys and the number of all sites, which groups do",
    ),
    "users without names beside sites": (
        {"devices": USERS},
        "[devices] is for users without names: leave 'sites' and [[groups]] out, or leave [devices] out",
    ),
    "users who keep a second model": (
        {"sites": [], "devices": USERS, "method": {"kind": "ditto"}},
        "method 'ditto' keeps more at each user than personal weights, or takes steps that no stack of users can",
    ),
    "a median of a hundred thousand users": (
        {"sites": [], "devices": USERS, "strategy": {"kind": "median"}},
        "strategy 'median' needs more of a round than the mean of its updates, and with [devices] nothing else is",
    ),
    "users weighed by their loss": (
        {"sites": [], "devices": USERS, "weighting": {"factors": [{"kind": "loss"}]}},
        "[devices] knows nothing of a user but the number of rows: weigh by size",
    ),
    "codecs for users who are simulated": (
        {"sites": [], "devices": USERS, "uplink": [{"kind": "int8"}], "cohort_fraction": 0.5},
        "uplink, cohort_fraction: there is no such thing in a simulation of devices yet",
    ),
    "users who talk": (
        {"sites": [], "devices": USERS, "task": TEXTS, "model": {"name": "text_mean"}},
        "[devices] reads rows of numbers, pictures and tables, of classes or numbers, but task.kind is 'text'",
    ),
    "users scaled by their few rows": (
        {"sites": [], "devices": USERS, "task": NUMBER | {"scale": "site"}, "model": {"name": "linear"}},
        "task.scale: users have too few rows to be scaled by: give numbers, or leave it out",
    ),
    "noise that is refused and asked for": (
        {"sites": [], "devices": USERS, "privacy": {"sites": {"epsilon": 3}}, "weighting": EQUAL},
        "devices.private = false and privacy.sites contradict each other",
    ),
    "a round of users without noise": (
        {"sites": [], "devices": {"cohort": 60}, "quorum": 55},
        "quorum leaves the weights as they were where too few answer, without noise, so that one user's answer shows",
    ),
    "users who hold out rows twice": (
        {"sites": [], "devices": USERS, "split": {"validation": 0.1}},
        "split.validation: there is no such thing in a simulation of devices yet",
    ),
    "noise of users who are let go": (
        {"sites": [], "devices": {"cohort": 60}, "straggler_seconds": 5},
        "straggler_seconds lets go of users when enough others have answered",
    ),
    "noise for too few users": (
        {"sites": [], "devices": {"cohort": 40}},
        "that hides one site hides what all have learned; privacy.examples hides patients in studies of any size; dev",
    ),
    "a number of all sites with groups of devices": (
        {"groups": PHONES, "strategy": {"kind": "scaffold"}, "method": {"kind": "scaffold"}, "training": PLAIN},
        "strategy 'scaffold' divides by the number of all sites, which nobody knows of a study with groups: choose",
    ),
    "relays of devices without names": (
        {"relays": NORTH, "groups": [{"name": "phones", "cohort": 5}]},
        "relays stand before sites that the study names, and groups and devices have no such names: leave relays out",
    ),
    "a strategy that no mean is enough for": (
        {"relays": NORTH, "strategy": {"kind": "median"}},
        "a relay sends on the mean of its sites' updates alone, but strategy 'median' needs more of them: set",
    ),
    "a weighting that compares sites of two relays": (
        {"relays": NORTH, "weighting": {"factors": [{"kind": "fedadp"}]}},
        "but weighting 'fedadp' compares all sites with each other: weigh by size or loss, each with an exponent",
    ),
    "bounds of shares that a relay does not know": (
        {"relays": NORTH, "weighting": {"minimum": 0.1}},
        "but weighting.smoothing, .minimum and .maximum need all sites' weights: leave them out",
    ),
    "codecs through a relay": (
        {"relays": NORTH, "uplink": [{"kind": "int8"}]},
        "uplink: a relay takes and sends arrays as they are: leave uplink and downlink out",
    ),
    "a relay of buffered rounds": (
        {"relays": NORTH, "schedule": {"kind": "buffered", "size": 2}},
        "schedule = 'buffered' takes updates one by one as they come, and a relay sends one mean of a round: set",
    ),
    "a draw that leaves a relay one site": (
        {"relays": NORTH, "cohort_fraction": 0.7},
        "cohort_fraction and over_selection draw sites wherever they are, and a relay of which one is drawn has no",
    ),
    "stragglers that a relay would let go": (
        {"relays": NORTH, "straggler_seconds": 5},
        "straggler_seconds begins with the quorum, which a relay does not know, and it makes one mean a round of all",
    ),
    "secure sums through a relay": (
        {"relays": NORTH, "privacy": {"secure_aggregation": True}},
        "privacy.secure_aggregation is reckoned with all sites of a round at one server, and relays stand between",
    ),
    "updates that a relay keeps to itself": (
        {"relays": NORTH, "keep_updates": True},
        "keep_updates keeps every site's update at the coordinator, who gets means from relays: set it to false",
    ),
    "directions that a relay keeps to itself": (
        {"relays": NORTH, "defence": {"against": 3}},
        "defence.against compares single updates from round to round, and a relay sends on means: leave it out",
    ),
    "updates that are kept and never seen": (
        {"privacy": {"secure_aggregation": True}, "keep_updates": True},
        "keep_updates keeps every site's update at the coordinator, which privacy.secure_aggregation never shows it",
    ),
    "sites that collude where the server has the noise": (
        {"privacy": {"sites": {"noise": 5, "colluding": 2}}},
        "privacy.sites.colluding is about noise that sites add to secure sums, but in this study the server adds it",
    ),
    "rows of a table that are turned": (
        {"task": NUMBER, "training": PLAIN | {"augment": {"rotate": 10}}},
        "training.augment changes pictures, and a task of kind 'table' has none: leave it out",
    ),
    "pieces of pictures that could be all black": (
        {"task": PICTURES, "training": PLAIN | {"augment": {"crop": 32}}},
        "training.augment.crop puts 32 pixels around pictures of 32 x 32, so that a piece could be all black: set it",
    ),
    "a warm-up without an end": (
        {"training": PLAIN | {"schedule": {"kind": "linear_warmup", "warmup": 3}}},
        "training.schedule.warmup is 3 rounds of 3, so that training would never reach the learning rate",
    ),
    "another rate in every step of a method with one": (
        {"method": {"kind": "apfl"}, "training": PLAIN | {"schedule": {"kind": "cosine", "by": "step"}}},
        "method 'apfl' computes with one learning rate for all steps of a round: set training.schedule.by = 'round'",
    ),
    "steps of other lengths that are counted": (
        {"strategy": {"kind": "fednova"}, "training": PLAIN | {"schedule": {"kind": "cosine", "by": "step"}}},
        "strategy 'fednova' divides by the number of local SGD steps, which are equally long where the rate changes",
    ),
    "another rate in every round of a slope": (
        {"strategy": {"kind": "qfedavg"}, "training": PLAIN | {"schedule": {"kind": "cosine"}}},
        "strategy 'qfedavg' takes 1 / learning_rate for the slope of the loss, which holds for steps at one rate",
    ),
    "clipped steps of plain SGD": (
        {"method": {"kind": "per_fedavg"}, "training": PLAIN | {"clip_gradient": 1.0}},
        "method 'per_fedavg' is defined for plain SGD: set training.optimiser = 'sgd', training.momentum = 0 and "
        "training.weight_decay = 0, and leave training.clip_gradient out",
    ),
    "balanced draws of a number": (
        {"task": NUMBER, "training": PLAIN | {"sampling": "balanced"}},
        "training.sampling = 'balanced' draws classes alike, and this task's label is none: leave it out",
    ),
    "balanced draws for a method that balances": (
        {"method": {"kind": "fedrod"}, "training": PLAIN | {"sampling": "balanced"}},
        "method 'fedrod' balances the classes itself, by how many examples of each a site has: leave",
    ),
    "smooth labels of a number": (
        {"task": NUMBER, "training": PLAIN | {"label_smoothing": 0.1}},
        "training.label_smoothing is for labels that are classes, and this task's label is none: leave it out",
    ),
    "weights of classes that there are not": (
        {"training": PLAIN | {"class_weights": {"no": 1.0, "maybe": 2.0}}},
        "training.class_weights: 'maybe' has a weight, but is no class of the task: give one for each class",
    ),
    "weights of some classes": (
        {"training": PLAIN | {"class_weights": {"no": 1.0}}},
        "training.class_weights: 'yes' has no weight, expected one: give one for each class",
    ),
    "weights of classes for a method that balances": (
        {"method": {"kind": "fedrod"}, "training": PLAIN | {"class_weights": "balanced"}},
        "method 'fedrod' balances the classes itself, by how many examples of each a site has: leave "
        "training.class_weights out",
    ),
    "weights by how many patients there are": (
        {"privacy": {"examples": {"epsilon": 3}}, "training": PLAIN | {"class_weights": "balanced"}},
        "training.class_weights = 'balanced' weighs by how many patients of each class a site has, which",
    ),
    "a study that is stopped by no rows": (
        {"stopping": {"patience": 2}, "split": {"validation": 0.0}},
        "stopping looks at validation examples, but split.validation is 0: give it a part of each site's rows",
    ),
    "a study that is stopped by what nobody measures": (
        {"stopping": {"patience": 2, "metric": "auroc"}},
        "stopping.metric: 'auroc' is not measured in this study, which measures loss, accuracy: name it in metrics",
    ),
    "a private study that is stopped": (
        {"privacy": {"examples": {"epsilon": 3}}, "stopping": {"patience": 2}},
        "stopping looks at what sites measure in every round, which privacy.examples lets none of them tell",
    ),
    "a study that hides sites and is stopped": (
        {"privacy": {"sites": {"noise": 5}}, "stopping": {"patience": 2}},
        "stopping ends the study by what sites measure, which has no noise, so that its last round would tell more",
    ),
    "balanced draws of patients": (
        {"privacy": {"examples": {"epsilon": 3}}, "training": PLAIN | {"sampling": "balanced"}},
        "training.sampling = 'balanced' draws by how many patients of each class a site has, which privacy.examples",
    ),
    "noise for patients that is clipped": (
        {"privacy": {"examples": {"epsilon": 3}}, "training": PLAIN | {"clip_gradient": 1.0}},
        "privacy.examples clips each patient's gradient (privacy.examples.clip), and what is clipped after that is",
    ),
    "noise for whole sites that agree on a scale": (
        {"privacy": {"sites": {"noise": 5}}},
        "privacy.sites adds noise to weights, not to the scale of inputs that the sites would agree on",
    ),
    "a buffer with a quorum": (
        {"schedule": {"kind": "buffered", "size": 2}, "quorum": 2},
        "schedule = 'buffered' ends a round with schedule.size updates: leave quorum out",
    ),
    "a buffer that waits for stragglers": (
        {"schedule": {"kind": "buffered", "size": 2}, "straggler_seconds": 5.0},
        "schedule = 'buffered' asks all sites that are not at work and waits for no slow one: leave cohort_fraction",
    ),
    "a buffer of more sites than there are": (
        {"schedule": {"kind": "buffered", "size": 4}},
        "schedule.size must be at most the number of sites (3), got 4",
    ),
    "a buffer of masked updates": (
        {"schedule": {"kind": "buffered", "size": 3}, "privacy": {"secure_aggregation": True, "bound": 1.0}},
        "schedule = 'buffered' takes updates of several rounds, each by itself, but secure sums",
    ),
    "a buffer of updates from differences": (
        {"schedule": {"kind": "buffered", "size": 2}, "downlink": [{"kind": "int8"}]},
        "schedule = 'buffered' sends sites weights of different rounds, and a downlink codec sends the difference",
    ),
    "a buffer for the median": (
        {"schedule": {"kind": "buffered", "size": 3}, "strategy": {"kind": "median"}},
        "strategy 'median' takes more from the updates of one round than their mean",
    ),
    "a buffer with control variates": (
        {
            "schedule": {"kind": "buffered", "size": 3},
            "method": {"kind": "scaffold"},
            "strategy": {"kind": "scaffold"},
            "training": PLAIN,
        },
        "strategy 'scaffold' takes more from the updates of one round than their mean",
    ),
    "a buffer weighted by losses of several rounds": (
        {"schedule": {"kind": "buffered", "size": 2}, "weighting": {"factors": [{"kind": "auto"}]}},
        "weighting 'auto' compares what sites did in the same round, and schedule = 'buffered' has updates of several",
    ),
    "a buffer that ends with its best round": (
        {"schedule": {"kind": "buffered", "size": 2}, "stopping": {"patience": 2, "final": "best"}},
        "stopping.final = 'best' ends with the weights that all sites of a round measured, and with schedule",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_combination_is_refused_with_a_sentence(name: str, make_study: MakeStudy) -> None:
    """The study does not load, and the error says what does not fit with what."""
    settings, sentence = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        make_study(**settings)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": [*PHONES, *PHONES]}, "groups: 'phones' is there more than once: give each group a name of its own"),
        ({"groups": PHONES, "sites": ["phones"]}, "groups: 'phones' is also the name of a site: rename one of them"),
        (
            {"groups": PHONES, "sites": ["phones-000007"]},
            "sites: 'phones-000007' is a name of a device of group 'phones'",
        ),
        (
            {"groups": [{"name": "lab-000001", "cohort": 1}]},
            "groups: 'lab-000001' ends like a device's name, with a hyphen",
        ),
        ({"groups": [{"name": "phones", "cohort": 0}]}, "cohort"),
        ({"groups": [{"name": "Ph\x1b[2Jones", "cohort": 1}]}, "groups"),
        ({"groups": PHONES, "sites": [], "quorum": 6}, "quorum must be at most the sites asked in a round (5), got 6"),
        ({"sites": []}, "sites: name at least one site, or a group of devices in groups"),
    ],
)
def test_groups_with_names_of_others_are_refused(
    settings: dict[str, Any], sentence: str, make_study: MakeStudy
) -> None:
    """No device could be told from a site or from a device of another group."""
    with pytest.raises(ConfigError) as caught:
        make_study(**settings)
    assert sentence in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_every_rule_has_a_study_that_breaks_it(make_study: MakeStudy) -> None:
    """No rule is dead: each is the first to speak for some study above."""
    spoken: set[str] = set()
    legal = make_study()
    for settings, _ in REFUSED.values():
        fields = {name: getattr(legal, name) for name in type(legal).model_fields}
        parts = make_study().model_copy(update=fields | _parsed(settings))
        spoken |= {rule.__name__ for rule in RULES if rule(parts) is not None}
    assert {rule.__name__ for rule in RULES} == spoken


def _parsed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings as fields of a study, each parsed by its own type: no rule sees them together."""
    found = {}
    for name, value in settings.items():
        field = StudyConfig.model_fields[name]
        annotation: Any = field.annotation
        if field.discriminator is not None:
            annotation = Annotated[annotation, field]
        found[name] = TypeAdapter(annotation).validate_python(value)
    return found


def test_legal_study_has_no_problem(make_study: MakeStudy) -> None:
    """Neither the default nor neighbours of what is refused."""
    for settings in (
        {},
        {"method": {"kind": "scaffold"}, "strategy": {"kind": "scaffold"}, "training": PLAIN},
        {"strategy": {"kind": "fednova"}, "method": {"kind": "fedper"}},
        {"strategy": {"kind": "fednova"}, "method": {"kind": "feddbe"}},
        {"strategy": {"kind": "feddyn"}, "method": {"kind": "feddyn"}},
        {"strategy": {"kind": "fedexp"}, "weighting": {}},
        {"strategy": {"kind": "trimmed_mean"}},
        {"strategy": {"kind": "median"}, "weighting": {"factors": [{"kind": "loss"}]}},
        {"sites": ["a", "b", "c", "d", "e"], "strategy": {"kind": "krum"}},
        {"weighting": {"factors": [{"kind": "fedce"}]}},
        {"weighting": {"minimum": 1 / 3, "maximum": 1 / 3}},
        {"method": {"kind": "local"}},
        {"groups": PHONES, "over_selection": 0.3},
        {"groups": PHONES, "sites": [], "strategy": {"kind": "fedadam"}, "quorum": "all"},
        {"schedule": {"kind": "buffered", "size": 2}, "strategy": {"kind": "fedadam"}, "uplink": [{"kind": "int8"}]},
        {"schedule": {"kind": "buffered", "size": 1}, "weighting": {"factors": [{"kind": "feddisco"}]}},
        {"schedule": {"kind": "buffered", "size": 3}, "stopping": {"patience": 2}, "keep_best": True},
    ):
        assert [] == problems(make_study(**settings))


def test_what_a_method_declares_of_its_strategy_holds(make_study: MakeStudy) -> None:
    """A method has a strategy of its own where one has its name, but for FedAvg; two halves of a whole say so both."""
    strategies = {kind_of(one): one for one in variants(StrategyConfig)}
    for method in variants(MethodConfig):
        own = method.own_strategy
        assert own == (kind_of(method) if kind_of(method) in strategies.keys() - {"fedavg"} else None), method
        if own is None:
            assert not method.matched, method
            continue
        assert method.matched == strategies[own].matched, method
        training = PLAIN if method.plain_sgd else {"epochs": 1}
        study = make_study(method={"kind": kind_of(method)}, strategy={"kind": own}, training=training)
        assert [] == problems(study)
    halves = {kind for kind, strategy in strategies.items() if strategy.matched}
    assert halves == {kind_of(method) for method in variants(MethodConfig) if method.matched}
    assert all(strategies[kind].travels <= strategies[kind].matched for kind in strategies)


def kind_of(settings: type[Any]) -> str:
    """Return the name of an algorithm by the class of its settings."""
    return str(settings.model_fields["kind"].default)


def test_class_counts_that_a_site_keeps_stop_the_study(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """FedDisco needs histograms: a site whose settings keep them is named, before any training."""
    sites = make_sites(share_class_counts=True)
    text = sites["lyon"].read_text(encoding="utf-8")
    sites["lyon"].write_text(text.replace("share_class_counts = true", "share_class_counts = false"), encoding="utf-8")
    study = make_study(weighting={"factors": [{"kind": "divergence"}]})
    with pytest.raises(
        ConfigError, match=r"site 'lyon' does not share its class counts.*'divergence'.*share_class_counts"
    ):
        run_in_process(study, sites, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_site_settings_take_the_noise_of_class_counts(make_sites: MakeSites) -> None:
    """`class_counts_epsilon` is a number greater than 0."""
    path = make_sites({"berlin": 30}, share_class_counts=True, class_counts_epsilon=0.5)["berlin"]
    assert 0.5 == load_site(path).class_counts_epsilon
    path.write_text(path.read_text(encoding="utf-8").replace("0.5", "0.0"), encoding="utf-8")
    with pytest.raises(ConfigError, match="class_counts_epsilon: must be greater than 0"):
        load_site(path)
