"""consilium in one process, beside its peers.

    python ours.py WORK OUT METHOD ENGINE      # METHOD: a key of METHODS; ENGINE: exact | batched

A round of ours is what a study's round is: plans and their checks, defences, state and a checkpoint on the disk.
Models are measured in the last round alone, as nobody else measures any before the end.
"""

import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import consilium as cs
from consilium.api.federation import make_federation
from consilium.client.data import read_site
from consilium.common.engines import EngineName
from consilium.common.host.files import scratch
from consilium.common.study.load import load_site
from peers.work import Floats, Rounds, Whole, Work, done, load, load_pools

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavg-equal": {"weighting": {"factors": [{"kind": "size", "exponent": 0.0}]}},
    "reptile": {"method": {"kind": "reptile"}, "strategy": {"kind": "reptile", "anneal": False}},
    "apfl": {"method": {"kind": "apfl"}},
}
Pools = Mapping[str, tuple[Floats, Whole]]


def network(layers: list[Floats]) -> nn.Sequential:
    """Return layers with ReLU between them."""
    parts = list[nn.Module]()
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        parts += [nn.ReLU()] * bool(parts) + [linear]
    return nn.Sequential(*parts)


def study_of(work: Work, method: str, num_sites: int) -> cs.Study:
    """Return the study that asks for the work."""
    return cs.Study(
        name="peers",
        rounds=work.rounds,
        batch_size=work.batch,
        learning_rate=work.rate,
        momentum=0.0,
        epochs=1,
        cohort_fraction=work.cohort / num_sites,
        evaluate_every=work.rounds,
        local_baseline=False,
        split={"validation": 0.0},
        **METHODS[method],
    )


def divided(work: Work, pools: Pools) -> Work:
    """Return the work on the rows that the sites of `pools` train on, and test on, when ours divides them."""
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        federation = make_federation(study_of(work, "fedavg", len(pools)), pools, network(work.layers), {}, folder=name)
        sites = [read_site(load_site(path), federation.study).scaled(None) for path in federation.sites.values()]
    trained, tested = [site.train for site in sites], [site.test for site in sites]
    ends, test_ends = (np.cumsum([0, *(len(part) for part in parts)]) for parts in (trained, tested))
    x, test_x = (torch.cat([part.x for part in parts]).numpy() for parts in (trained, tested))
    y, test_y = (torch.cat([part.y for part in parts]).numpy() for parts in (trained, tested))
    return Work(x, y, ends, test_x, test_y, test_ends, work.layers, work.batch, work.rate, work.rounds, work.cohort)


def main() -> None:
    """Run a study and write what its sites serve."""
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    file, method = Path(sys.argv[1]), sys.argv[3]
    work, pools, engine = load(file), load_pools(file), cast(EngineName, sys.argv[4])
    with tempfile.TemporaryDirectory(prefix="peers-") as name, scratch():
        model = network(work.layers)
        running = cs.rounds(
            study_of(work, method, len(pools)), pools, model, engine=engine, progress=False, folder=name
        )
        rounds = Rounds()
        for _ in running:
            rounds.note()
        names = list(pools) if "method" in METHODS[method] else [None]
        models = [running.result.model(site) for site in names]
        done(Path(sys.argv[2]), [[array.numpy() for array in model.state_dict().values()] for model in models])


if __name__ == "__main__":
    main()
