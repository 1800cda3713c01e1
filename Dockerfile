# wamkit with everything that `make demo` needs, on a CPU:
#   docker build -t wamkit . && docker run --rm -v "$PWD/work:/work" wamkit collect --env metaworld --tasks drawer-open-v3 --out data/demos
# bookworm: Mesa has no OSMesa since 25.1.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libosmesa6 && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=osmesa
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt '.[all]'
RUN useradd --create-home wamkit && mkdir /work && chown wamkit /work
USER wamkit
WORKDIR /work
ENTRYPOINT ["wamkit"]
CMD ["--help"]
