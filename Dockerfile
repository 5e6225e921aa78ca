# One image per part of Roost, from one file: docker build --target session_service .
# The base is pinned by tag; what is installed on it is pinned, with hashes, by lock/*.txt.
FROM python:3.11-slim-bookworm AS base
# Only where pip must ask another index than its own: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --user-group --no-create-home roost
WORKDIR /app
# What is copied here is found from any folder: the emulator's guests start elsewhere.
RUN pwd > "$(python -c 'import site; print(site.getsitepackages()[0])')/roost.pth"

FROM base AS service
COPY lock/run.txt lock/run.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r lock/run.txt
# `gen` is a source root, not a package: what is below it lies beside the services.
COPY gen/roost roost
COPY grpc_edge grpc_edge

FROM service AS session_service
COPY session_service session_service
# Compiled here: PYTHONDONTWRITEBYTECODE keeps a start from storing what it has compiled.
RUN python -m compileall -q roost grpc_edge session_service
USER roost
EXPOSE 50051
ENTRYPOINT ["python", "-m", "session_service"]

FROM service AS container_service
COPY container_service container_service
RUN python -m compileall -q roost grpc_edge container_service
USER roost
EXPOSE 50052
ENTRYPOINT ["python", "-m", "container_service"]

FROM base AS emulator
COPY lock/local.txt lock/local.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r lock/local.txt
COPY local local
# A named volume takes over the owner of the folder that it covers.
RUN mkdir /data && chown roost:roost /data
USER roost
VOLUME /data
EXPOSE 4280 4281
ENTRYPOINT ["python", "-m", "local"]
CMD ["fly", "--data", "/data", "--host", "0.0.0.0"]
