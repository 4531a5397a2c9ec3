"""The committed code of the wire's messages is what its .proto says."""

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

WIRE = Path("consilium") / "common" / "wire"


def test_generated_code_is_what_the_proto_says(tmp_path: Path) -> None:
    """Byte for byte, the code and its types; after a change of wire.proto run `make wire`."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools (of the extra 'dev') is not installed")
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=.", f"--python_out={tmp_path}"]
    command += [f"--pyi_out={tmp_path}", str(WIRE / "wire.proto")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in ("wire_pb2.py", "wire_pb2.pyi"):
        assert (tmp_path / WIRE / name).read_bytes() == (ROOT / WIRE / name).read_bytes(), f"{name}: run 'make wire'"


@pytest.mark.parametrize(
    "order", ["flwr.app, consilium.common.wire.wire_pb2", "consilium.common.wire.wire_pb2, flwr.app"]
)
def test_generated_code_and_flwr_can_be_imported_in_any_order(order: str) -> None:
    """Both register messages in protobuf's one pool."""
    code = f"import {order}\nprint(consilium.common.wire.wire_pb2.Piece(data=b'x').data)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ("b'x'\n", 0) == (done.stdout, done.returncode), done.stderr
