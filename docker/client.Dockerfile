# A site: its data readers, models, methods and the warm worker. No data, no keys: they are mounted.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where torch comes from; the CPU index saves several GB of CUDA. For GPUs: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
RUN python3 -m venv /opt/consilium
WORKDIR /build
COPY constraints.txt ./
RUN /opt/consilium/bin/pip install --quiet --constraint constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch \
    && /opt/consilium/bin/pip install --quiet --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torchvision
COPY pyproject.toml ./
RUN /opt/consilium/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && /opt/consilium/bin/pip install --quiet --constraint constraints.txt --requirement requirements.txt "setuptools>=77" \
    && find /opt/consilium -depth \( -name tests -o -name test \) -type d -path '*site-packages*' \
       ! -path '*/torch/testing*' -exec rm -rf {} + \
    && rm -rf /opt/consilium/lib/python3*/site-packages/torch/include
COPY README.md LICENSE ./
COPY common common
COPY server server
COPY client client
COPY consilium consilium
RUN /opt/consilium/bin/pip install --quiet --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 consilium && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp consilium \
    && install -d -o 10001 -g 10001 -m 0700 /site /server /exchange \
       /hospitals /hospitals/berlin /hospitals/lyon /hospitals/porto \
    && install -d -o 10001 -g 10001 -m 0755 /public /grafana-secret
COPY --from=build /opt/consilium /opt/consilium
ENV PATH=/opt/consilium/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 OMP_NUM_THREADS=1
# What sites run works without what pages, pictures and comparisons need, which is not here.
# The bytecode that this import writes stays in the image, which no process may write to: else every start compiles anew.
RUN PYTHONDONTWRITEBYTECODE= python3 -c "import consilium.common, importlib.util; assert consilium.common.__file__.startswith('/opt/consilium/'), consilium.common.__file__; \
    assert not [name for name in ('pandas', 'matplotlib') if importlib.util.find_spec(name)]; import consilium.client.node, consilium.client.worker, consilium.client.operations.doctor.examine, consilium.adaptation.adapt, consilium.adaptation.terminal, consilium.data.sources, consilium.demo.backbone, consilium.demo.containers"
USER 10001:10001
WORKDIR /site
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://' + os.environ.get('METRICS_ADDRESS', '127.0.0.1:9095') + '/healthz')"]
ENTRYPOINT ["consilium"]
CMD ["site", "start", "/site/site.toml"]
