"""The bad line of the tests of faults does what it says: else they would test nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from bad_links import Line, Link


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while content := connection.recv(65_536):
                connection.sendall(content)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listening.accept()[:1], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield int(listening.getsockname()[1])
    listening.close()


@pytest.fixture
def link(echo: int) -> Iterator[Link]:
    """A link to it."""
    made = Link(echo)
    yield made
    made.close()


def connected(link: Link, seconds: float = 5) -> socket.socket:
    """Return a connection over a link."""
    return socket.create_connection(("127.0.0.1", link.port), seconds)


def received(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes, or those there were at the end."""
    content = b""
    with suppress(ConnectionResetError):
        while len(content) < count and (more := connection.recv(count - len(content))):
            content += more
    return content


def test_good_line_carries_all_in_order(link: Link) -> None:
    """A million bytes there and back."""
    content = bytes(range(256)) * 4000
    with connected(link) as connection:
        threading.Thread(target=connection.sendall, args=(content,), daemon=True).start()
        assert content == received(connection, len(content))


def test_delay_counts_in_both_directions(link: Link) -> None:
    """0.1 s there, 0.1 s back."""
    link.line = Line(delay_seconds=0.1, jitter_seconds=0.01)
    with connected(link) as connection:
        began = time.monotonic()
        connection.sendall(b"x")
        assert b"x" == received(connection, 1)
    assert time.monotonic() - began >= 0.18


def test_narrow_line_takes_its_time(link: Link) -> None:
    """20 kB at 100 kB/s take 0.2 s each way, one after the other or at once."""
    link.line = Line(bytes_per_second=100_000)
    with connected(link) as connection:
        began = time.monotonic()
        connection.sendall(bytes(20_000))
        assert 20_000 == len(received(connection, 20_000))
    assert 0.2 <= time.monotonic() - began


def test_hole_swallows_nothing_for_ever(link: Link) -> None:
    """Nothing arrives while it is there, and all of it afterwards, as TCP sends again."""
    with connected(link) as connection:
        connection.sendall(b"before")
        assert b"before" == received(connection, 6)
        link.hole()
        connection.sendall(b"after!")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(6)
        link.back()
        connection.settimeout(5)
        assert b"after!" == received(connection, 6)


def test_line_that_is_away_cuts_and_refuses_until_it_is_back(link: Link) -> None:
    """Both connections that there are and new ones."""
    with connected(link) as connection:
        connection.sendall(b"x")
        assert b"x" == received(connection, 1)
        link.away()
        assert b"" == received(connection, 1)
    with pytest.raises(ConnectionRefusedError):
        connected(link)
    link.back()
    with connected(link) as connection:
        connection.sendall(b"y")
        assert b"y" == received(connection, 1)


def test_piece_that_is_cut_short_arrives_in_half(link: Link) -> None:
    """And the connection ends after it."""
    with connected(link) as connection:
        connection.sendall(b"x")
        assert b"x" == received(connection, 1)
        link.cut_short()
        connection.sendall(b"12345678")
        assert received(connection, 8) in (b"", b"1234")  # the first half may be cut as well on its way back
    assert 1 == link.short


def test_resets_are_as_often_as_the_line_says(link: Link) -> None:
    """Always, here: no piece arrives."""
    link.line = Line(resets=1.0)
    with connected(link) as connection:
        connection.sendall(b"x")
        assert b"" == received(connection, 1)
    assert 1 == link.resets
