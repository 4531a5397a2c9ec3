"""Rounds of a deployment: empty ones, large ones, and the memory of a server that holds large ones."""

import time
from datetime import datetime

from measuring.deployments import deployment, round_seconds, run_ours, study
from measuring.peers import Peers
from measuring.processes import watching
from measuring.stock import stock_rounds
from measuring.table import Row, of

MEGABYTES, ROUNDS = 100, 23


def empty_rounds(peers: Peers) -> list[Row]:
    """Rounds in which nobody computes, 2 and 8 sites, and the start of a study at warm sites."""
    rows: list[Row] = []
    for sites in (2, 8):
        with deployment(sites) as where:
            run_ours(where, study(where, "warm-up", rounds=2))
            time.sleep(5)  # a spare process for the next run is on its way
            began = time.time()
            events = run_ours(where, study(where, "empty"))
            seconds = round_seconds(events)
            asked = next(event for event in events if event["event"] == "asked")
            start = datetime.fromisoformat(asked["time"]).timestamp() - began
        row: Row = {"work": f"empty round, {sites} sites", "unit": "s", "limit": 0.005, **of(seconds)}
        if peers.stock and sites == 2:
            row["stock"] = stock_rounds(peers.stock, 2, rounds=5, tuned=False)
            row["stock_tuned"] = stock_rounds(peers.stock, 2, rounds=5, tuned=True)
        rows.append(row)
        if sites == 2:
            rows.append({"work": "study start to first plan, warm sites", "unit": "s", "ours": start, "limit": 0.01})
    return peers.beside("empty_rounds", rows)


def large_rounds(peers: Peers) -> list[Row]:
    """100 MB of shared weights, two sites: nothing to train, and a real site that takes one step."""
    with deployment(2, echo_megabytes=MEGABYTES) as where:
        config = study(where, "echo", rounds=ROUNDS, round_timeout_seconds=300)
        row: Row = {"work": "100 MB of shared weights, 2 sites, nothing to train", "unit": "s", "limit": 0.45}
        row |= of(round_seconds(run_ours(where, config)))
    if peers.stock:
        row["stock"] = stock_rounds(peers.stock, 2, rounds=5, megabytes=MEGABYTES, evaluate=False, tuned=False)
    with deployment(2) as where:
        model, training = {"name": "mlp", "hidden": [5000, 4999]}, {"steps": 1, "batch_size": 4}
        config = study(where, "large", rounds=ROUNDS, model=model, training=training, round_timeout_seconds=300)
        seconds = round_seconds(run_ours(where, config))
    whole: Row = {"work": "the same, a whole round of ours (1 step, baseline, state)", "unit": "s", **of(seconds)}
    return peers.beside("large_rounds", [row, whole])


def memory(peers: Peers) -> list[Row]:
    """The server's peak over its idle size, with a model of 100 MB; sites that send back what comes."""
    rows: list[Row] = []
    for sites in (2, 32, 64):
        with deployment(sites, echo_megabytes=MEGABYTES) as where:
            time.sleep(5)
            with watching(where.home.address().pid) as peak:
                config = study(where, "memory", rounds=3, round_timeout_seconds=600)
                seconds = round_seconds(run_ours(where, config))
        for which, title in (("anonymous", "without"), ("resident", "with")):
            work = f"server's peak over idle, {sites} sites, {title} pages of files"
            rows.append({"work": work, "unit": "models", "ours": peak[which] / MEGABYTES, "limit": 1.0})
        rows.append({"work": f"the round of it, {sites} sites", "unit": "s", **of(seconds)})
    return peers.beside("memory", rows)
