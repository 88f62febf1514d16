# The service as an image. Needs BuildKit.
#
#   docker build -t sdxl-turbo-img2img .
#       without weights: the first start downloads them into the volume /data
#   docker build -t sdxl-turbo-img2img:with-weights --target with-weights --build-arg MODEL=stabilityai/sdxl-turbo .
#       with weights, for hosts without access to the hub (the weights have a licence of their own)
#   docker build --build-arg COMPILER=g++ -t sdxl-turbo-img2img .
#       with a C++ compiler, which IMG2IMG_COMPILE needs
#   docker build --build-arg EXTRA=c2pa -t sdxl-turbo-img2img .
#       with the packages that sign images, which IMG2IMG_C2PA_CERTIFICATE needs
#   docker build --build-arg TORCH_INDEX_URL=URL --build-arg CUDA=12 -t sdxl-turbo-img2img .
#       with another build of torch, for drivers older than 580: URL is torch's own package index for CUDA 12.6, whose
#       name ends in cu126. Only torch and its CUDA packages come from there. CUDA is the major version of that build.
#
# Behind mirrors: --build-arg PYTHON_IMAGE=... for the base image, and any of PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS and PIP_TRUSTED_HOST for pip; all four are unset by default and stay out of the final image.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_TRUSTED_HOST
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# pip is not installed into the environment: it runs from outside.
RUN python -m venv --without-pip /opt/venv
ARG TORCH_INDEX_URL
ARG CUDA=13
COPY requirements.lock requirements-cuda.lock scripts/container/packages /tmp/
# torch and its CUDA packages go to a tree of their own, which becomes a layer that only a new torch changes. For the same
# reason the bytecode has hashes and no file times. It is one step, because a move between steps would copy gigabytes.
# The packages' own tests are removed. compileall's status is ignored: torch has a file that needs a newer Python.
RUN --mount=type=cache,target=/root/.cache/pip \
    set -eu; \
    cd /tmp && ./packages /opt/venv/bin/python; \
    site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
    find "$site" -type d \( -name test -o -name tests \) -prune -exec rm -rf {} +; \
    rm -rf "$site"/torch/bin/*[Tt]est*; \
    /opt/venv/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash "$site" || true; \
    mkdir -p "/opt/torch$site"; \
    for path in "$site"/torch "$site"/torch-* "$site"/torchgen "$site"/functorch \
                "$site"/nvidia* "$site"/cuda* "$site"/triton*; do \
        if [ -e "$path" ]; then mv "$path" "/opt/torch$site/"; fi; \
    done
# A step of its own, so that a change here does not install all of that again.
ARG EXTRA=
COPY requirements-c2pa.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$EXTRA" ]; then \
        python -m pip --python /opt/venv/bin/python install --no-deps --requirement "/tmp/requirements-$EXTRA.lock"; \
    fi


FROM dependencies AS application
COPY pyproject.toml README.md LICENSE /src/
COPY app /src/app
RUN python -m pip --python /opt/venv/bin/python install --no-compile --no-deps --no-build-isolation \
        --prefix /opt/app /src \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/app/lib


FROM ${PYTHON_IMAGE} AS base
ARG COMPILER=
RUN if [ -n "$COMPILER" ]; then \
        apt-get update && apt-get install -y --no-install-recommends "$COMPILER" && rm -rf /var/lib/apt/lists/*; \
    fi
RUN groupadd --gid 10001 img2img \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin img2img \
    && install -d -o 10001 -g 10001 /data /data/hf
COPY --from=dependencies /opt/torch/ /
COPY --from=dependencies /opt/venv/ /opt/venv/
# HOME for any user id that the container is started with.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/hf \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    IMG2IMG_COMPILE_CACHE=/data/compiled \
    IMG2IMG_HOST=0.0.0.0
# Under a driver for an older major version of CUDA the NVIDIA Container Toolkit refuses to start the container.
ARG CUDA=13
ENV NVIDIA_REQUIRE_CUDA="cuda>=${CUDA}.0"
VOLUME ["/data"]
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# The first start may download gigabytes before it is healthy.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=1800s CMD ["img2img", "health"]
ENTRYPOINT ["img2img"]
CMD ["serve"]
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="sdxl-turbo-img2img" \
      org.opencontainers.image.description="SDXL-Turbo image-to-image as a service: an image and a prompt in, an image out" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


FROM base AS weights
ARG MODEL=stabilityai/sdxl-turbo
COPY --from=application /opt/app/ /opt/venv/
USER 0:0
RUN HF_HOME=/opt/hf img2img download --model "$MODEL"


FROM base AS with-weights
ARG MODEL=stabilityai/sdxl-turbo
COPY --from=weights /opt/hf/ /opt/hf/
# Offline, because nothing can be added to a cache that is part of the image.
ENV HF_HOME=/opt/hf IMG2IMG_MODEL=${MODEL} IMG2IMG_OFFLINE=1
COPY --from=application /opt/app/ /opt/venv/


# A build without --target makes the last stage. The application is its last layer, and a small one.
FROM base AS runtime
COPY --from=application /opt/app/ /opt/venv/
