"""The bundle that Flower wants with every run: it holds no code, for a site runs what is installed there."""

import common

BUNDLE_FILES = {
    "pyproject.toml": f"""\
[project]
name = "consilium"
version = "{common.__version__}"
description = "The apps installed at server and sites; this bundle holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "consilium"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
folder = ""
transport = "grpc"
tls = true
""".encode()
}
"""Name and content of every file in this release's bundle; equal at server and sites of one release."""
