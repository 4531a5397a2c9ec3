"""The process of Flower's SuperLink, with our state in it and with sites that wait for plans instead of polling.

flwr 1.39 has a site ask every 3 s whether there is a message, and answers at once. Here the answer waits until there
is one, so that a plan is at its site a few milliseconds after it was sent and an idle site asks three times a minute.
"""

import functools
import importlib
import sys
import threading
from pathlib import Path

import grpc
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import linkstate_factory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import object_store_factory
from flwr.supercore.primitives.asymmetric import bytes_to_public_key

from common.errors import StateError
from common.processes import share_memory
from common.protocol import MAX_MESSAGE_BYTES
from server.superlink_state import LinkState, PayloadFiles, SiteRegistry

PLAN_SECONDS = 20.0
"""How long a site waits in one request for a plan: less than most proxies and firewalls let a silent call live."""
SEATS = 500
"""How many sites may wait at once: each takes one of the 1,000 threads of flwr's gRPC server. The rest ask again."""


class WaitingFleetServicer(FleetServicer):
    """flwr's side of the sites' API; a request for messages waits for one."""

    _seats = threading.BoundedSemaphore(SEATS)

    def PullMessages(self, request: PullMessagesRequest, context: grpc.ServicerContext) -> PullMessagesResponse:
        """Return the site's next message, or none after a while."""
        state = self.state_factory.state()
        if isinstance(state, LinkState) and self._seats.acquire(blocking=False):
            try:
                own = state.wait_for_plan(request.node.node_id, seconds=PLAN_SECONDS, is_wanted=context.is_active)
            finally:
                self._seats.release()
            if not own or not context.is_active():  # a message given to nobody would be lost
                return PullMessagesResponse()
        return super().PullMessages(request, context)


def main() -> None:
    """Entry point of `python -m server.superlink_process HOME ...`; the rest are arguments of `flower-superlink`."""
    home = Path(sys.argv[1])
    registry = SiteRegistry(home / "sites.json")
    try:
        registry.load()
    except StateError as error:
        sys.exit(str(error))
    linkstate_factory.__dict__["InMemoryLinkState"] = functools.partial(LinkState, registry=registry)
    object_store_factory.__dict__["InMemoryObjectStore"] = functools.partial(PayloadFiles, home / "objects")
    program = importlib.import_module("flwr.superlink.cli.flower_superlink")  # its package has a function of that name
    program.__dict__.update(FleetServicer=WaitingFleetServicer, GRPC_MAX_MESSAGE_LENGTH=MAX_MESSAGE_BYTES)
    keys = importlib.import_module(NodeAuthServerInterceptor.__module__)
    keys.__dict__["bytes_to_public_key"] = functools.lru_cache(SEATS)(bytes_to_public_key)  # asked at every request
    share_memory()
    sys.argv = ["flower-superlink", *sys.argv[2:], "--database", FLWR_IN_MEMORY_DB_NAME]
    program.flower_superlink()


if __name__ == "__main__":
    main()
