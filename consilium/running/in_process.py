"""A federation in one process: the server's and the sites' own code, without sockets.

Sites answer one after the other, in the order they were asked, so a run is deterministic; with the engine `batched`
those that are asked together train together. Plans and replies pass as
they are (`direct.py`), or in messages of Flower's `Grid` to the real ClientApp, where a `Deliver` lets a test lose,
delay or alter them.
"""

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from consilium.client.app import app as client_app
from consilium.common.engines import EngineName
from consilium.common.results import RunResult
from consilium.common.study.load import write_site
from consilium.common.study.study import StudyConfig
from consilium.running.direct import DirectExchange, OnSite, unheard
from consilium.running.engine import Engine
from consilium.running.local_keys import provide_keys
from consilium.running.relayed import relayed
from consilium.server.app import run_steps
from consilium.server.study.exchange import Exchange
from consilium.server.study.progress import Progress
from consilium.server.study.run_folder import RunFolder

TRANSPORT = "in-process"
"""What carries plans and payloads, in results."""

Answering = Callable[[Message], Message]
Deliver = Callable[[str, Message, Answering], Message | None]
"""`deliver(site, message, answering)` returns the reply, or None when nothing ever comes back."""


def deliver_always(site: str, message: Message, answering: Answering) -> Message | None:
    """Deliver every message and every reply."""
    return answering(message)


class InProcessGrid(Grid):
    """Sites by name, each with its `site.toml`; a message is answered when its reply is first asked for."""

    def __init__(self, sites: Mapping[str, Path], *, deliver: Deliver = deliver_always) -> None:
        self._sites = {number: (name, path) for number, (name, path) in enumerate(sorted(sites.items()), start=1)}
        self._deliver = deliver
        self._pending: dict[str, Message] = {}
        self._run: Run | None = None
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0

    def set_run(self, run: Run) -> None:
        """Remember the run (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run that was set."""
        if self._run is None:
            raise RuntimeError("no run was set")
        return self._run

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Not offered: Flower deprecates it."""
        raise NotImplementedError("build a Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all sites."""
        return list(self._sites)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all sites, online and named."""
        return [NodeInfo(node_id=number, name=name) for number, (name, _) in self._sites.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in and return their ids."""
        identifiers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = secrets.token_hex(32)
            self._pending[message.metadata.message_id] = message
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the sites answer those of the messages that are still unanswered, one at a time, as replies are taken."""
        for identifier in message_ids:
            message = self._pending.pop(identifier, None)
            if message is None:
                continue
            name, path = self._sites[message.metadata.dst_node_id]
            reply = self._deliver(name, message, lambda item, path=path: _answer(item, path))  # type: ignore[misc]  # mypy infers no lambda with a default
            if reply is not None:
                yield reply

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop messages that are no longer waited for."""
        for identifier in message_ids:
            self._pending.pop(identifier, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull at once (Flower's interface)."""
        return self.pull_messages(self.push_messages(messages))


def _answer(message: Message, path: Path) -> Message:
    context = Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config={"site": str(path)},
        state=RecordDict(),
        run_config={},
    )
    try:
        return client_app(message, context)
    except Exception as error:  # as Flower's run_clientapp does: a crash of the app becomes an error reply
        return Message(Error(code=0, reason=f"{type(error)}:<'{error}'>"), reply_to=message)


def write_local_site(folder: Path, data: Mapping[str, Any], **settings: Any) -> Path:
    """Write `site.toml` for a site that is named like its folder and runs in this process; return the file.

    Args:
        data: its `[data]`; paths are relative to `folder`.
        settings: further ones.
    """
    unused = {"server": "localhost:1", "ca_certificate": "none", "private_key": "site.key"}
    path = folder / "site.toml"
    write_site(path, {"name": folder.name, **unused, "state_dir": "state", "device": "cpu", **settings, "data": data})
    return path


def run_in_process(
    study: StudyConfig,
    sites: Mapping[str, Path],
    folder: Path,
    *,
    deliver: Deliver | None = None,
    engine: EngineName = "exact",
) -> RunResult:
    """Run a study on sites given by their `site.toml`, write the run's files into `folder`, and return its result.

    Args:
        deliver, engine: as of `steps_in_process`.

    Raises:
        ConsiliumError: what ended the run.
    """
    for _ in steps_in_process(study, sites, folder, deliver=deliver, engine=engine):
        pass
    return RunResult.model_validate_json(RunFolder(folder).result.read_bytes())


def steps_in_process(
    study: StudyConfig,
    sites: Mapping[str, Path],
    folder: Path,
    *,
    deliver: Deliver | None = None,
    on_site: OnSite = unheard,
    engine: EngineName = "exact",
) -> Generator[Progress, None, RunResult]:
    """Run a study as `run_in_process` does, one step at a time: when the sites agree, and after every round.

    Nothing runs between two steps. Closed early, the run is stopped; it goes on from its last round when a run is
    started in the same folder.

    Args:
        deliver: carries messages in place of handing plans over as they are, one site at a time.
        on_site: is called before a site answers what was handed over.
        engine: how sites train what was handed over; the result says what `batched` did in stacks.

    Raises:
        ConsiliumError: what ended the run.
    """
    provide_keys(study, sites)
    used, text = Engine(engine), study.model_dump_json()
    grid: Grid | Exchange = InProcessGrid(sites, deliver=deliver or deliver_always)
    if deliver is None:
        grid = DirectExchange(sites, used, on_site=on_site)
    if deliver is None and study.relays:
        grid = relayed(study, folder, lambda names: DirectExchange({n: sites[n] for n in names}, used, on_site=on_site))
    return run_steps(grid, text, folder, transport=TRANSPORT, tls=False, engine=used.use)
