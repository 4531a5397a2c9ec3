# The server: the wire to the sites, the runs, the coordinator's commands and reports. No torch, no data, no secrets.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
RUN python3 -m venv /opt/consilium
WORKDIR /build
COPY constraints.txt docker/server-requirements.txt ./
RUN /opt/consilium/bin/pip install --quiet --constraint constraints.txt --requirement server-requirements.txt "setuptools>=77"
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY server server
COPY client client
COPY consilium consilium
RUN /opt/consilium/bin/pip install --quiet --no-deps --no-build-isolation . \
    && /opt/consilium/bin/pip uninstall --quiet --yes setuptools pip

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 consilium && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp consilium \
    && install -d -o 10001 -g 10001 -m 0700 /server /runs /exchange \
    && install -d -o 10001 -g 10001 -m 0755 /public
COPY --from=build /opt/consilium /opt/consilium
ENV PATH=/opt/consilium/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
# Make sure that what runs is what was installed, and that torch is not here.
# The bytecode that this import writes stays in the image, which no process may write to: else every start compiles anew.
RUN PYTHONDONTWRITEBYTECODE= python3 -c "import consilium.common, importlib.util, sys; assert consilium.common.__file__.startswith('/opt/consilium/'), consilium.common.__file__; \
    assert importlib.util.find_spec('torch') is None; import consilium.server.operations.start, consilium.server.run_process, consilium.demo.containers, consilium.report.files, consilium.report.terminal"
USER 10001:10001
WORKDIR /server
EXPOSE 9092
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://' + os.environ.get('METRICS_ADDRESS', '127.0.0.1:9094') + '/readyz')"]
ENTRYPOINT ["consilium"]
CMD ["server", "start", "--home", "/server", "--address", "0.0.0.0:9092"]
