"""IPv6: an address in brackets wherever `host:port` is read, and a server, a site and pages on `::1` with real TLS."""

import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from network import needs_ipv6
from processes import COMMAND, ENVIRONMENT, Server, call, join, running_server, until

from consilium.client.operations.doctor.network import check_dns, check_greeting, check_proxy, check_tcp, check_tls
from consilium.client.wire.place import Place
from consilium.client.wire.probe import place_of
from consilium.common.errors import ConfigError, PortInUse
from consilium.common.host.address import Address, check_apart, parse_address
from consilium.common.host.certificates import certificate_hosts
from consilium.common.host.http_pages import serving, text_page
from consilium.common.host.ports import check_port_free, free_port
from consilium.common.study.load import load_site
from consilium.server.operations.authority import make_server_identity
from consilium.server.operations.bundles import check_handout
from consilium.server.operations.home import ServerAddress, ServerHome


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:9092", "localhost", 9092),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[2001:db8::7]:9092", "2001:db8::7", 9092),
        ("[fe80::1%eth0]:9092", "fe80::1%eth0", 9092),
        ("study-1.example.org:9092", "study-1.example.org", 9092),
    ],
)
def test_address_is_read_and_written_alike(text: str, host: str, port: int) -> None:
    """Law: `str(parse_address(text)) == text`; a host has no brackets."""
    address = parse_address(text, what="--address")
    assert (host, port) == (address.host, address.port)
    assert text == str(address)


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a", "a:", "a:b", "::1:9092", "[::1]", "[::1]9092", "[a]:1", "[]:1", "a b:1", "a:1:2", "a:\uff11"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Two colons without brackets too: nobody knows which of them begins the port."""
    with pytest.raises(ConfigError, match=r"^--address: (must be host:port|between the brackets)"):
        parse_address(text, what="--address")


@pytest.mark.parametrize("text", ["a:0", "a:65536", "a:99999", "[::1]:0", "[::1]:70000", "a:-1", "a:+1", "a:123456"])
def test_port_that_cannot_be_is_refused(text: str) -> None:
    """Port 0 is free for tests alone, which ask for it."""
    with pytest.raises(ConfigError, match=r"^x: the port must be a number from 1 to 65535, got"):
        parse_address(text, what="x")


@pytest.mark.parametrize(
    ("one", "other"),
    [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("127.0.0.1:1", "127.0.0.1:1"), ("[::1]:1", "[0:0::1]:1")],
)
def test_one_port_for_two_things_is_refused(one: str, other: str) -> None:
    """All addresses of a machine hold each of them; other ports, and other interfaces, are apart."""
    first, second = parse_address(one, what="a"), parse_address(other, what="b")
    with pytest.raises(ConfigError, match=r"^--a and --b both have port 1; give each a port of its own"):
        check_apart(("--a", first), ("--b", second))
    check_apart(("--a", first), ("--b", Address(second.host, 2)))
    check_apart(("--a", Address("192.0.2.1", 1)), ("--b", Address("192.0.2.2", 1)))


@pytest.mark.parametrize("host", ["2001:db8::7", "[2001:db8::7]"])
def test_certificate_and_bundle_name_an_address(host: str, tmp_path: Path) -> None:
    """Typed with brackets or without; a bundle names it however it is written, and no other."""
    home = ServerHome(tmp_path)
    make_server_identity(tmp_path, hosts=[host, "localhost"])
    assert ["2001:db8::7", "localhost"] == certificate_hosts((tmp_path / "server.pem").read_bytes())
    home.listening(ServerAddress(sites="[::]:9092", pid=1))
    assert "[2001:db8::7]:9092" == check_handout(home, name="berlin")
    assert "[2001:db8:0::7]:9" == check_handout(home, name="berlin", address="[2001:db8:0::7]:9")
    with pytest.raises(ConfigError, match="not for '2001:db8::8'"):
        check_handout(home, name="berlin", address="[2001:db8::8]:9092")


def test_proxy_and_name_are_looked_up_without_brackets(tmp_path: Path) -> None:
    """An exemption in no_proxy is written without them, and an address has no name to look up."""
    site = call("site", "init", "--name", "berlin", "--server", "[2001:db8::7]:9092", cwd=tmp_path)
    assert 0 == site.returncode, site.stderr
    config = load_site(tmp_path / "site" / "site.toml")
    assert "[2001:db8::7]:9092" == config.server
    finding = check_proxy(config, {"https_proxy": "http://proxy:3128", "no_proxy": "example.org,2001:db8::7"})
    assert "PASS" == finding.status, finding
    assert "2001:db8::7 is an address; there is no name to look up" == check_dns(config).message
    place = place_of(config)
    assert ("2001:db8::7", 9092) == (place.host, place.port)
    assert place == Place.from_json(place.to_json())


@needs_ipv6
def test_pages_are_served_on_ipv6() -> None:
    """The address that comes back can be opened as it is; a port that is taken is named."""
    with serving("[::1]:0", {"/healthz": lambda: text_page(200, "ok")}) as url:
        assert url.startswith("http://[::1]:")
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            assert b"ok\n" == answer.read()
        taken = parse_address(url.removeprefix("http://"), what="url")
        with pytest.raises(PortInUse, match=f"x: port {taken.port} on ::1 cannot be used"):
            check_port_free(taken, what="x")


@needs_ipv6
def test_site_joins_over_ipv6(tmp_path: Path) -> None:
    """Server, TLS with the address in the certificate, gRPC, bundle, doctor and pages, all on `::1`."""
    metrics = Address("::1", free_port())
    with running_server(tmp_path, metrics=str(metrics), host="::1") as server:
        assert server.address.startswith("[::1]:")
        assert "::1" in certificate_hosts(server.home.certificate.read_bytes())
        until(lambda: is_ready(metrics))
        folder = join(server, tmp_path, "berlin")
        config = load_site(folder.settings)
        assert server.address == config.server
        findings = [check_tcp(config), check_tls(config), *check_greeting(config)]
        assert ["PASS"] * 4 == [finding.status for finding in findings], findings
        assert_attends(server, folder.settings, tmp_path)


def is_ready(metrics: Address) -> bool:
    """Return whether the server's page says so; a moment after the start it does not yet."""
    try:
        with urllib.request.urlopen(f"http://{metrics}/readyz", timeout=5) as answer:
            return bool(b"ready\n" == answer.read())
    except urllib.error.HTTPError:
        return False


def assert_attends(server: Server, settings: Path, folder: Path) -> None:
    """Start the site, and see that the server has it online."""
    with (folder / "site.log").open("wb") as log:
        site = subprocess.Popen(
            [*COMMAND, "site", "start", str(settings)], env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: "berlin\tonline\t" in call("server", "sites", "--home", str(server.home.path), cwd=folder).stdout)
    finally:
        site.terminate()
        site.wait(timeout=30)


@needs_ipv6
def test_certificate_for_another_address_is_not_trusted(tmp_path: Path) -> None:
    """The address is checked as a name is: no bundle is made for it, and the doctor says what to do."""
    ServerHome(tmp_path / "home").prepare(["localhost"])
    with running_server(tmp_path, host="::1") as server:
        with pytest.raises(ConfigError, match="the server's certificate is for localhost, not for '::1'"):
            check_handout(server.home, name="berlin")
        address = f"localhost:{parse_address(server.address, what='server').port}"
        folder = join(Server(server.home, address), tmp_path, "berlin")
        config = load_site(folder.settings)
        finding = check_tls(config.model_copy(update={"server": server.address}))
        assert ("FAIL", True) == (finding.status, finding.fix.startswith("use the name that is in the certificate"))
