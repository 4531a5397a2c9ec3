"""Before a site joins: connect once with its key and turn Flower's silence into a sentence.

Flower itself only logs "Connection attempt failed, retrying" for an unknown key and then ends.
"""

import socket
import ssl
import time
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.client.grpc_rere_client.connection import grpc_request_response
from flwr.supercore.retry import make_simple_grpc_retry_invoker

from common.config import SiteConfig
from common.errors import ConfigError, ConnectionRefused


def check_connection(config: SiteConfig, *, timeout_seconds: float = 20.0) -> None:
    """Connect once with this site's key, and leave again.

    Raises:
        ConnectionRefused: no route, a certificate that is not trusted, a clock that is off, or an unknown key.
        ConfigError: the key file is not an elliptic-curve key.
    """
    host, _, port = config.server.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionRefused(
                    f"site '{config.name}' cannot reach the server at {config.server}: {error}; is it running, and "
                    "does the firewall allow this outbound connection?"
                ) from error
            time.sleep(0.3)
    certificate = config.ca_certificate.read_bytes()
    _check_certificate(config)
    keys = _load_keys(config)
    retry = make_simple_grpc_retry_invoker()
    retry.max_tries = 1
    try:
        with grpc_request_response(
            config.server, False, retry, root_certificates=certificate, authentication_keys=keys
        ):
            pass
    except grpc.RpcError as error:
        raise ConnectionRefused(_explain(config, error)) from error
    except SystemExit as error:
        raise ConnectionRefused(_unknown_key(config)) from error


def _check_certificate(config: SiteConfig) -> None:
    host, _, port = config.server.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(config.ca_certificate))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            pass
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or str(error)
        raise ConnectionRefused(
            f"site '{config.name}' does not trust the server at {config.server}: {reason}; "
            f"is '{config.ca_certificate}' the certificate that the study's coordinator sent?"
        ) from error
    except OSError as error:
        raise ConnectionRefused(f"site '{config.name}' lost the connection to {config.server}: {error}") from error


def _load_keys(config: SiteConfig) -> tuple[Any, Any]:
    try:
        key = load_ssh_private_key(config.private_key.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
        raise ConfigError(f"private_key: '{config.private_key}' is not a readable private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"private_key: '{config.private_key}' is a {type(key).__name__}, expected an EC key")
    return key, key.public_key()


def _explain(config: SiteConfig, error: Any) -> str:

    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return _unknown_key(config)
    if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
        return f"site '{config.name}' is refused by the server at {config.server}: {error.details()}"
    return f"site '{config.name}' cannot talk to the server at {config.server}: {error.code().name}: {error.details()}"


def _unknown_key(config: SiteConfig) -> str:
    return (
        f"the server at {config.server} does not know the key of site '{config.name}' ('{config.private_key}.pub'); "
        "send that public key to the study's coordinator and ask for it to be approved "
        "(also check that this machine's clock is right: it may be at most 5 s ahead or 5 minutes behind)"
    )
