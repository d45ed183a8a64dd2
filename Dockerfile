# The two images, at the versions of requirements.lock:
#   docker build --target operator -t REGISTRY/finetune-operator:0.1.0 .
#   docker build --target trainer  -t REGISTRY/finetune-trainer:0.1.0 .
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY crds/finetune_api crds/finetune_api
COPY operator/finetune_operator operator/finetune_operator
COPY trainer/finetune_trainer trainer/finetune_trainer
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' requirements.lock >/wheels/constraints.txt

FROM python:3.11-slim AS operator
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /wheels/constraints.txt "$(ls /wheels/*.whl)[operator]"
USER 65532
ENTRYPOINT ["finetune-operator"]

# g++: training.compile. More extras: trackers (docs/trackers.md), and deepspeed, which docs/strategies.md says the cost of.
FROM python:3.11-slim AS trainer
ARG EXTRAS=trainer,qlora
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /wheels/constraints.txt "$(ls /wheels/*.whl)[$EXTRAS]"
USER 65532
ENTRYPOINT ["finetune"]
