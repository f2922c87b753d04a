# The study in a container:
#   docker build --tag medtransfer .
#   docker run --rm --volume "$PWD/mlruns:/study/mlruns" --volume "$PWD/reports:/study/reports" medtransfer
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git=1:2.39.* \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /study
COPY requirements/lock.txt requirements/lock.txt
RUN pip install --no-cache-dir --require-hashes --requirement requirements/lock.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

CMD ["medtransfer", "study"]
