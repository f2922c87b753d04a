# The study in a container, on a GPU or without one (docs/containers.md):
#   docker build --target gpu --tag medtransfer:gpu .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/study" medtransfer:gpu
# BASE may be any Debian with python3 (3.11 to 3.13) and its venv module.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
RUN python3 -m venv /opt/medtransfer
ENV PATH=/opt/medtransfer/bin:$PATH
WORKDIR /study

FROM build AS build-cpu
COPY requirements/cpu.txt requirements/cpu.txt
RUN pip install --no-cache-dir --require-hashes --requirement requirements/cpu.txt
COPY pyproject.toml README.md ./
COPY src src
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

FROM build AS build-gpu
COPY requirements/gpu.txt requirements/gpu.txt
RUN pip install --no-cache-dir --require-hashes --requirement requirements/gpu.txt
COPY pyproject.toml README.md ./
COPY src src
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

FROM ${BASE} AS study
# DVC and the provenance of every run need git.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /study \
    && useradd --create-home --uid 1000 study \
    && install --directory --owner study --group study --mode 0777 /study /mlflow /home/study/.cache
# DVC and MLflow need a user name, which a user given by --user lacks.
ENV PATH=/opt/medtransfer/bin:$PATH \
    HOME=/home/study \
    USER=study \
    LOGNAME=study \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /study
COPY --chown=study:study . .
USER 1000:1000
# New volumes copy these folders, permissions included, so that any user (--user) can write to them.
RUN mkdir --parents artifacts .dvc/cache data mlruns reports \
    && chmod --recursive a+rwX .
LABEL org.opencontainers.image.title="medtransfer" \
      org.opencontainers.image.description="A transfer-learning study on medical images" \
      org.opencontainers.image.version="0.1.0"
HEALTHCHECK --interval=5m --timeout=1m CMD ["medtransfer", "check"]
CMD ["medtransfer", "study"]

FROM study AS gpu
ENV MEDTRANSFER_REQUIRE_GPU=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/medtransfer /opt/medtransfer

FROM study AS cpu
COPY --from=build-cpu /opt/medtransfer /opt/medtransfer
