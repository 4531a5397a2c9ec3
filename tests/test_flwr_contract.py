"""Every internal of flwr that consilium leans on, by name: another release fails here, saying what moved."""

import importlib
import inspect
from importlib.metadata import version

import pytest

NAMES = [
    "flwr.proto.fleet_pb2_grpc:FleetStub",
    "flwr.proto.fleet_pb2:ActivateNodeRequest.HEARTBEAT_INTERVAL_FIELD_NUMBER",
    "flwr.common.constant:SIGNATURE_HEADER",
    "flwr.supercore.error:ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL",
    "flwr.supercore.error:ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED",
    "flwr.supercore.runtime_version_compatibility:RuntimeVersionMetadata.as_metadata",
    "flwr.supernode.start_client_internal:make_simple_grpc_retry_invoker",
    "flwr.supercore.retry:make_simple_grpc_retry_invoker",
    "flwr.supercore.retry:make_simple_http_retry_invoker",
    "flwr.supercore.runtime:RuntimeHttpClient.AcquireTask",
    "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor",
    "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor",
    "flwr.supercore.superexec.run_superexec:_SUPEREXEC_AUTH_METHODS",
    "flwr.supercore.exit:add_exit_handler",
    "flwr.supercore.exit.exit_handler:trigger_exit_handlers",
    "flwr.supercore.task_identity:TaskIdentity.task_id",
    "flwr.supercore.control:ControlHttpClient.RegisterNode",
    "flwr.supercore.control:ControlHttpClient.StartRun",
    "flwr.supercore.control:ControlHttpClient.StopRun",
    "flwr.supercore.control:ControlHttpClient.ListRuns",
    "flwr.supercore.control:ControlHttpClient.ListNodes",
    "flwr.supercore.control:ControlHttpClient.UnregisterNode",
    "flwr.supernode.cli.flower_supernode:flower_supernode",
    "flwr.supernode.start_client_internal:time.sleep",
    "flwr.supernode.runtime.run_clientapp:run_clientapp",
    "flwr.supernode.runtime.run_clientapp:install_from_fab",
    "flwr.supernode.runtime.run_clientapp:get_load_client_app_fn",
    "flwr.supernode.runtime.run_clientapp:register_signal_handlers",
    "flwr.supernode.runtime.run_clientapp:flwr_exit",
    "flwr.cli.build:build_fab_from_files",
    "flwr.supernode.start_client_internal:_pull_and_store_message",
    "flwr.supernode.runtime.run_clientapp:push_message",
    "flwr.supernode.runtime.run_clientapp:push_task_output",
    "flwr.common.constant:ErrorCode.CLIENT_APP_CRASHED",
    "flwr.supercore.sql_mixin:SqlMixin.session",
    "flwr.supercore.corestate.sql_corestate:SqlCoreState._cleanup_expired_task_tokens",
    "flwr.superlink.cli.flower_superlink:flower_superlink",
]


def find(name: str) -> object:
    module, _, path = name.partition(":")
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part) if part != "task_id" else inspect.getattr_static(type(found), part)
    return found


def test_flwr_is_the_release_that_was_read() -> None:
    """The pinned release is installed; it is the last with a gRPC Fleet API."""
    assert "1.39.0" == version("flwr")


@pytest.mark.parametrize("name", NAMES)
def test_flwr_still_has(name: str) -> None:
    """The name exists where consilium looks for it."""
    assert find(name) is not None


@pytest.mark.parametrize("function", ["pull_objects", "pull_and_inflate_object_from_tree"])
def test_object_pulls_take_their_back_off_from_keyword_defaults(function: str) -> None:
    """The two defaults that a site and the server shorten are still there."""
    from flwr.supercore.inflatable import inflatable_utils

    assert {"initial_backoff", "backoff_cap"} <= set(getattr(inflatable_utils, function).__kwdefaults__)


def test_supernode_loop_sleeps_as_measured() -> None:
    """3 s after an empty poll, 0.5 s while waiting for a reply: what PacedTime tells apart at 1 s."""
    from flwr.supernode import start_client_internal

    source = inspect.getsource(start_client_internal)
    assert 1 == source.count("time.sleep(3)")
    assert 2 == source.count("time.sleep(0.5)")
