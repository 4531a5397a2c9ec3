"""Every internal of flwr that consilium leans on, by name: another release fails here, saying what moved."""

import importlib
import inspect
from importlib.metadata import version

import pytest

NAMES = [
    "flwr.proto.fleet_pb2_grpc:FleetStub",
    "flwr.proto.fleet_pb2:ActivateNodeRequest.HEARTBEAT_INTERVAL_FIELD_NUMBER",
    "flwr.common.constant:SIGNATURE_HEADER",
    "flwr.common.constant:ErrorCode.CLIENT_APP_RAISED_EXCEPTION",
    "flwr.supercore.error:ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL",
    "flwr.supercore.error:ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED",
    "flwr.supercore.runtime_version_compatibility:RuntimeVersionMetadata.as_metadata",
    "flwr.supercore.retry:make_simple_grpc_retry_invoker",
    "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor",
    "flwr.supercore.run:RunNotRunningException",
    "flwr.supercore.control:ControlHttpClient.RegisterNode",
    "flwr.supercore.control:ControlHttpClient.StartRun",
    "flwr.supercore.control:ControlHttpClient.StopRun",
    "flwr.supercore.control:ControlHttpClient.ListRuns",
    "flwr.supercore.control:ControlHttpClient.ListNodes",
    "flwr.supercore.control:ControlHttpClient.UnregisterNode",
    "flwr.cli.build:build_fab_from_files",
    "flwr.client.grpc_rere_client.connection:grpc_request_response",
    "flwr.client.grpc_rere_client.connection:remove_content_from_message",
    "flwr.client.grpc_rere_client.connection:flwr_exit",
    "flwr.superlink.grid:HttpGrid._runtime_client",
    "flwr.supercore.runtime:RuntimeHttpClient.PushMessages",
    "flwr.supercore.runtime:RuntimeHttpClient.PullMessages",
    "flwr.supercore.runtime:RuntimeHttpClient.ConfirmMessageReceived",
    "flwr.superlink.cli.flower_superlink:FleetServicer.PullMessages",
    "flwr.superlink.cli.flower_superlink:GRPC_MAX_MESSAGE_LENGTH",
    "flwr.superlink.cli.flower_superlink:flower_superlink",
    "flwr.server.superlink.linkstate.linkstate_factory:InMemoryLinkState.store_message_and_object_tree",
    "flwr.server.superlink.linkstate.linkstate_factory:InMemoryLinkState._check_stored_messages",
    "flwr.server.superlink.linkstate.linkstate_factory:InMemoryLinkState._cleanup_push_session",
    "flwr.supercore.object_store.object_store_factory:InMemoryObjectStore.preregister",
]


def find(name: str) -> object:
    module, _, path = name.partition(":")
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = found.__dict__[part] if isinstance(found, type) and part in found.__dict__ else getattr(found, part)
    return found


def test_flwr_is_the_release_that_was_read() -> None:
    """The pinned release is installed; it is the last with a gRPC Fleet API."""
    assert "1.39.0" == version("flwr")


@pytest.mark.parametrize("name", NAMES)
def test_flwr_still_has(name: str) -> None:
    """The name exists where consilium looks for it."""
    assert find(name) is not None


def test_connection_yields_its_functions_in_the_order_that_a_site_takes_them() -> None:
    """They come as a tuple without names."""
    from flwr.client.grpc_rere_client import connection

    source = inspect.getsource(connection.grpc_request_response)
    names = [
        "node_id",
        "receive",
        "send",
        "get_run",
        "get_fab",
        "pull_object",
        "push_object",
        "confirm_message_received",
    ]
    assert f"yield ( {', '.join(names)}, )" in " ".join(source.split())


def test_in_memory_state_keeps_what_ours_reads() -> None:
    """The attributes that `server.superlink_state` looks into."""
    from flwr.server.superlink.linkstate import linkstate_factory
    from flwr.supercore.object_store.object_store_factory import InMemoryObjectStore

    state = linkstate_factory.InMemoryLinkState(Federations(), InMemoryObjectStore())
    for name in [
        "nodes",
        "node_public_key_to_node_id",
        "owner_to_node_ids",
        "message_ins_store",
        "message_ins_id_to_message_res_id",
        "lock",
        "_object_push_sessions",
        "_object_push_session_by_root",
        "_lock_object_push_sessions",
    ]:
        assert hasattr(state, name), name


class Federations:
    """Stands for flwr's federation manager, which the state only remembers."""
