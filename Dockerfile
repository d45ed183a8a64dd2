# The two images, at the versions and hashes of requirements.lock, as a user that is not root, with a bill of materials
# (CycloneDX) in /usr/share/finetune:
#   docker build --target operator -t REGISTRY/finetune-operator:0.1.0 .
#   docker build --target trainer  -t REGISTRY/finetune-trainer:0.1.0 .
# Pin the base too: --build-arg PYTHON=python:3.11-slim@sha256:…  The trainer runs on CPUs as well; without CUDA's libraries
# it is made from a wheel of torch for CPUs, which you name with its hash:
#   docker build --target trainer-cpu --build-arg TORCH='torch @ https://…/torch-2.13.0+cpu-….whl#sha256=…' …
ARG PYTHON=python:3.11-slim
FROM ${PYTHON} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SOURCE_DATE_EPOCH=1767225600
WORKDIR /source
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY tools/audit.py tools/image_lock.py tools/sbom.py tools/images.toml tools/
RUN mkdir /wheels \
 && for image in build operator trainer; do python tools/image_lock.py $image >/wheels/$image.lock; done \
 && sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' requirements.lock >/wheels/constraints.txt \
 && python tools/image_lock.py trainer --without torch triton 'nvidia-*' 'cuda-*' >/wheels/trainer-cpu.lock \
 && echo 'python -m compileall -q --invalidation-mode unchecked-hash "$(python -c "import pip; print(pip.__path__[0])")/.." || true' \
    >/wheels/compile.sh \
 && for image in operator trainer; do \
      python tools/sbom.py $image --debian /var/lib/dpkg/status >/wheels/$image.cdx.json; \
    done \
 && pip install --require-hashes --no-deps -r /wheels/build.lock
COPY crds/finetune_api crds/finetune_api
COPY operator/finetune_operator operator/finetune_operator
COPY trainer/finetune_trainer trainer/finetune_trainer
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Bytecode that is valid by its hash and not by a time: no layer depends on when it was built.
FROM ${PYTHON} AS operator
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-compile --require-hashes --no-deps -r /wheels/operator.lock \
 && pip install --no-compile --no-index --no-deps /wheels/*.whl \
 && sh /wheels/compile.sh \
 && install -D -m 644 /wheels/operator.cdx.json /usr/share/finetune/operator.cdx.json
USER 65532
ENTRYPOINT ["finetune-operator"]

# g++: training.compile. More extras, pinned by version: trackers (docs/trackers.md), and deepspeed, which docs/strategies.md
# says the cost of: --build-arg EXTRAS=trainer,qlora,trackers
FROM ${PYTHON} AS trainer-base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN command -v g++ || (apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* /var/log/*)

FROM trainer-base AS trainer-cpu
ARG TORCH
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-compile --require-hashes --no-deps -r /wheels/trainer-cpu.lock \
 && pip install --no-compile --no-deps "${TORCH:?a wheel of torch for CPUs: torch @ URL#sha256=...}" \
 && pip install --no-compile --no-index --no-deps /wheels/*.whl \
 && sh /wheels/compile.sh \
 && install -D -m 644 /wheels/trainer.cdx.json /usr/share/finetune/trainer.cdx.json
USER 65532
ENTRYPOINT ["finetune"]

FROM trainer-base AS trainer
ARG EXTRAS=trainer,qlora
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-compile --require-hashes --no-deps -r /wheels/trainer.lock \
 && pip install --no-compile --no-index --no-deps /wheels/*.whl \
 && if [ "$EXTRAS" != trainer,qlora ]; then pip install --no-compile -c /wheels/constraints.txt "$(ls /wheels/*.whl)[$EXTRAS]"; fi \
 && sh /wheels/compile.sh \
 && install -D -m 644 /wheels/trainer.cdx.json /usr/share/finetune/trainer.cdx.json
USER 65532
ENTRYPOINT ["finetune"]
