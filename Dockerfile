# Targets: operator, trainer. BASE is any image with Python 3.11 or later and its venv.
ARG BASE=python:3.11-slim-bookworm

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
# dependencies are 5 GB: a builder that makes every stage above its target makes the small one alone.
FROM build AS operator-environment
RUN /opt/alignment/bin/pip install --require-hashes -r requirements/operator.txt
COPY --from=wheel /wheels /wheels
RUN /opt/alignment/bin/pip install --no-deps /wheels/*.whl

FROM ${BASE} AS operator
COPY --from=operator-environment /opt/alignment /opt/alignment
ENV PATH=/opt/alignment/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["alignment-operator"]

FROM build AS trainer-environment
RUN /opt/alignment/bin/pip install --require-hashes -r requirements/trainer.txt
COPY --from=wheel /wheels /wheels
RUN /opt/alignment/bin/pip install --no-deps /wheels/*.whl

FROM ${BASE} AS trainer
COPY --from=trainer-environment /opt/alignment /opt/alignment
ENV PATH=/opt/alignment/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["alignment-trainer"]
