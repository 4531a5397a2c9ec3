"""The coordinator's socket: one user's, by its mode and by what the kernel says of who connects."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from consilium.common.errors import ConfigError, ConnectionRefused, ConsiliumError, StateError
from consilium.server.operations.home import ServerAddress, ServerHome
from consilium.server.wire import submission
from consilium.server.wire.submission import Control, listen

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")

STRANGER = """
import os, socket, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.sendall(b'{"do": "submit", "job": {}, "title": "x"}\\n')
    print(connection.makefile().read())
except OSError as error:
    print(type(error).__name__)
"""


@asynccontextmanager
async def listening(home: ServerHome, **handlers: Callable[[dict[str, Any]], Awaitable[Any]]) -> AsyncIterator[None]:
    """Answer with these handlers until the block ends."""
    home.path.mkdir(mode=0o700, exist_ok=True)
    server = await listen(home.control, handlers)
    home.listening(ServerAddress(sites="localhost:1", pid=os.getpid()))
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


async def stranger(path: Path) -> str:
    """Return what another user of this machine gets to read."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", STRANGER, str(path), stdout=subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return output.decode()


def test_requests_are_answered_and_errors_keep_their_names(tmp_path: Path) -> None:
    """A value, an error of ours with its sentence, one that nobody foresaw, and a request of another release."""

    async def runs(_: dict[str, Any]) -> list[Any]:
        return []

    async def stop(request: dict[str, Any]) -> None:
        raise ConfigError(f"there is no run '{request['name']}'")

    async def sites(_: dict[str, Any]) -> dict[str, str]:
        raise ZeroDivisionError

    async def check() -> None:
        home = ServerHome(tmp_path / "home")
        async with listening(home, runs=runs, stop=stop, sites=sites):
            with Control(home) as control:
                assert [] == await asyncio.to_thread(control.runs)
                with pytest.raises(ConfigError, match="there is no run 'x'"):
                    await asyncio.to_thread(control.stop, "x")
                with pytest.raises(ConsiliumError, match="unexpected ZeroDivisionError"):
                    await asyncio.to_thread(control.sites)
                with pytest.raises(ConfigError, match="is it of another release"):
                    await asyncio.to_thread(control.new_ca)

    asyncio.run(check())


def test_socket_is_the_owners_only(tmp_path: Path) -> None:
    """Mode 0600 from its first moment, in a folder of mode 0700."""

    async def check() -> None:
        home = ServerHome(tmp_path / "home")
        async with listening(home):
            assert 0o600 == stat.S_IMODE(home.control.stat().st_mode)
            assert stat.S_ISSOCK(home.control.stat().st_mode)

    asyncio.run(check())


@as_root
@pytest.mark.parametrize("opened", [False, True], ids=["mode-0600", "opened-on-purpose"])
def test_another_user_of_the_machine_is_refused(
    tmp_path_factory: pytest.TempPathFactory, opened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By the mode; and where somebody has opened folder and socket to all, by what the kernel says of its uid."""
    called = []

    async def submit(request: dict[str, Any]) -> str:
        called.append(request)
        return "run"

    async def check() -> str:
        home = ServerHome(tmp_path_factory.mktemp("open") / "home")
        async with listening(home, submit=submit):
            if opened:
                home.control.chmod(0o666)
                for folder in (home.path, *home.path.parents[:-2]):
                    folder.chmod(0o755)
            return await stranger(home.control)

    answer = asyncio.run(check())
    assert [] == called
    if opened:
        assert "ConnectionRefused" == json.loads(answer)["error"]
        assert f"a request of another user was refused uid={NOBODY}" in caplog.text
    else:
        assert "PermissionError" == answer.strip()


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"[]\n", b"7\n", b"null\n", b'"x"\n', b"{\n", b"[" * 100_000 + b"\n", b"\xff\n"]
)
def test_requests_that_make_no_sense_harm_nothing(tmp_path: Path, line: bytes) -> None:
    """They are answered with an error; the next request is answered."""

    async def runs(_: dict[str, Any]) -> list[Any]:
        return []

    async def check() -> None:
        home = ServerHome(tmp_path / "home")
        async with listening(home, runs=runs):
            reader, writer = await asyncio.open_unix_connection(str(home.control))
            writer.write(line)
            writer.write_eof()
            assert "error" in json.loads(await asyncio.wait_for(reader.read(), 5))
            writer.close()
            await writer.wait_closed()
            assert [] == await asyncio.to_thread(Control(home).runs)

    asyncio.run(check())


def test_request_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered meanwhile."""
    monkeypatch.setattr(submission, "REQUEST_SECONDS", 0.3)

    async def runs(_: dict[str, Any]) -> list[Any]:
        return []

    async def check() -> None:
        home = ServerHome(tmp_path / "home")
        async with listening(home, runs=runs):
            reader, writer = await asyncio.open_unix_connection(str(home.control))
            writer.write(b'{"do": "ru')
            assert [] == await asyncio.to_thread(Control(home).runs)
            assert b"" == await asyncio.wait_for(reader.read(), 5)
            writer.close()
            await writer.wait_closed()

    asyncio.run(check())


def test_second_server_in_the_same_home_is_refused(tmp_path: Path) -> None:
    """The first keeps its socket; a socket that a killed server left behind is no obstacle."""

    async def check() -> None:
        home = ServerHome(tmp_path / "home")
        async with listening(home):
            with pytest.raises(StateError, match="another server runs in"):
                await listen(home.control, {})
            with pytest.raises(ConfigError, match="of another release"):
                await asyncio.to_thread(Control(home).runs)
        left = socket.socket(socket.AF_UNIX)
        home.control.unlink(missing_ok=True)
        left.bind(str(home.control))
        left.close()
        async with listening(home):
            pass

    asyncio.run(check())


def test_long_path_of_a_home_is_no_obstacle(tmp_path: Path) -> None:
    """Sockets have short names; homes may lie deep."""

    async def runs(_: dict[str, Any]) -> list[Any]:
        return []

    async def check() -> None:
        home = ServerHome(tmp_path / ("x" * 90) / ("y" * 90))
        home.path.mkdir(parents=True)
        async with listening(home, runs=runs):
            assert [] == await asyncio.to_thread(Control(home).runs)

    asyncio.run(check())


def test_no_server_is_a_sentence(tmp_path: Path) -> None:
    """None was ever started; one that was killed."""
    home = ServerHome(tmp_path)
    with pytest.raises(ConnectionRefused, match="no server runs in"):
        Control(home)
    home.listening(ServerAddress(sites="localhost:1", pid=1))
    with pytest.raises(ConnectionRefused, match="is it running, and as this user"):
        Control(home).runs()
