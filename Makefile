# One place for every command; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# On a machine without a GPU, avoid several GB of CUDA: make demo TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu'
TORCH_ARGS ?=
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test nightly check docs links e2e bench heart image image-server image-client wire

help: ## list the commands
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(INSTALLED) ## make .venv and install everything

# torch comes first: the packages after it then find it there and bring no other build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## server and three hospitals on this machine, end to end
	$(BIN)/consilium demo

# Whole files go to the processes, the longest first (tests/conftest.py), so that they end together.
TEST_PROCESSES ?= 2
test: $(INSTALLED) ## all tests but those with containers or faults, and but for what make nightly adds
	$(BIN)/python -m pytest -m "not containers and not faults and not nightly" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

nightly: $(INSTALLED) ## what test leaves out: every pair of algorithms, all inputs of the fuzzer, 20 kills of each kind
	$(BIN)/python -m pytest -m nightly -n $(TEST_PROCESSES)

# What the tests hold of the architecture, with two minutes of subprocesses, is in `make test`.
check: $(INSTALLED) docs ## format, lint, types, architecture, documentation
	$(BIN)/ruff format --diff .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/house.py

# A warning is an error: a link to a page, a heading or a file that is not there ends the build.
docs: $(INSTALLED) ## the documentation, as pages for a browser in build/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs build/docs

# Whether pages of others are still there; needs the internet.
links: $(INSTALLED)
	$(BIN)/sphinx-build --quiet --builder linkcheck docs build/links

e2e: $(INSTALLED) ## only the tests with real processes or containers, gRPC, TLS and keys, and with faults
	$(BIN)/python -m pytest -m "(e2e or containers or faults) and not nightly"

# Where the client image's torch comes from; empty: from pip's own index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
image: image-server image-client ## the images of server and client
image-server:
	docker build --tag consilium-server:latest --file docker/server.Dockerfile .
image-client:
	docker build --tag consilium-client:latest --build-arg TORCH_INDEX=$(TORCH_INDEX) --file docker/client.Dockerfile .

# flwr 1.39.0, the last release with gRPC at both ends, in an environment of its own to be measured beside.
STOCK := .venv-stock/.installed
$(STOCK):
	$(PYTHON) -m venv .venv-stock
	.venv-stock/bin/python -m pip install --quiet --constraint constraints.txt $(TORCH_ARGS) torch
	.venv-stock/bin/python -m pip install --quiet flwr==1.39.0 scikit-learn==1.9.1
	@touch $@

# BEFORE: a checkout of an earlier commit, with its .venv, to be measured in the same run.
BEFORE ?=
bench: $(INSTALLED) $(STOCK) ## speed beside stock flwr, and many sites; writes benchmarks/results (45 minutes)
	$(BIN)/python benchmarks/speed.py --stock .venv-stock/bin/python $(if $(BEFORE),--before $(BEFORE))
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/fleet.py 10000 --rounds 0

# Makes what is committed beside the .proto; tests/units/test_wire_generated.py holds the two together.
wire: $(INSTALLED)
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. consilium/common/wire/wire.proto

# Heart disease in FLamby's protocol, five seeds: make heart DATA=DIR
# DATA: a folder with the four processed.*.data files of UCI Heart Disease.
DATA ?= .
heart: $(INSTALLED)
	$(BIN)/python benchmarks/heart_disease.py --data-dir $(DATA)
