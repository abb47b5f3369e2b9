# pointdistill on a host with NVIDIA GPUs and the NVIDIA container toolkit:
#
#   docker build --tag pointdistill .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/data" pointdistill pretrain --size small
#
# The wheel of torch brings its own CUDA libraries, so that the plain Python image is enough; only the driver is the
# host's. Results are written to /data, as the calling user if it is run with --user "$(id -u):$(id -g)".

FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# The compiler is for torch.compile (the patch loss), which builds its kernels where it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The dependencies first: a change of the program does not install them again.
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src/pointdistill/version.py src/pointdistill/version.py
# hadolint ignore=DL3013
RUN mkdir -p src/pointdistill && touch src/pointdistill/__init__.py \
    && pip install '.[onnx,parquet,step]' && pip uninstall --yes pointdistill

COPY src src
RUN pip install --no-deps .

# Caches of weights, kernels and figures, wherever the calling user has no home.
ENV HOME=/data POINTDISTILL_CACHE=/data/.cache/pointdistill TORCHINDUCTOR_CACHE_DIR=/data/.cache/torchinductor
WORKDIR /data
ENTRYPOINT ["pointdistill"]
CMD ["--help"]
