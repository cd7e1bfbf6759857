# Targets: operator, trainer, and trainer-proof, which fails where the trainer cannot import or compile what it needs
# (`make image-test`). BASE is any image with Python 3.11 or later, its venv and apt.
ARG BASE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
# Set where the network's certificates are not the usual ones; pip and uv read it.
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
RUN python3 -m venv /opt/alignment

# The project's own wheel, without its dependencies.
FROM build AS wheel
COPY operator operator
COPY trainer trainer
RUN /opt/alignment/bin/pip wheel --no-deps --wheel-dir /wheels .

# Dependencies first: they change less often than the code. The operator's stages stand before the trainer's, whose
# dependencies are 10 GB: a builder that makes every stage above its target makes the small one alone.
FROM build AS operator-environment
RUN /opt/alignment/bin/pip install --require-hashes -r requirements/operator.txt
COPY --from=wheel /wheels /wheels
RUN /opt/alignment/bin/pip install --no-deps /wheels/*.whl

FROM ${BASE} AS operator
COPY --from=operator-environment /opt/alignment /opt/alignment
ENV PATH=/opt/alignment/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["alignment-operator"]

# Triton and Inductor compile kernels at a role's first step. Debian's own Python has its headers in python3-dev.
FROM ${BASE} AS trainer
ARG COMPILER=g++
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends ${COMPILER} >/dev/null \
    && rm -rf /var/lib/apt/lists/*
ARG PIP_CERT
COPY requirements/trainer.txt /tmp/requirements/trainer.txt
# The compiled file is the whole environment; what packages ask for beyond it is left out (requirements/left-out.txt).
RUN python3 -m venv /opt/alignment \
    && /opt/alignment/bin/pip install --disable-pip-version-check --no-cache-dir --no-deps --require-hashes \
        -r /tmp/requirements/trainer.txt
COPY --from=wheel /wheels /tmp/wheels
RUN /opt/alignment/bin/pip install --disable-pip-version-check --no-deps /tmp/wheels/*.whl
ENV PATH=/opt/alignment/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["alignment-trainer"]

FROM trainer AS trainer-proof
COPY tests/image /proof
RUN HOME=/tmp python /proof/trainer.py
