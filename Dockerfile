# The image of cluster.yaml, for the head and every worker: docker build --build-arg BASE=… -t … .
#
# BASE is Docker's official image of Python 3.11 on Debian, named by digest, so that each build starts from the same
# bytes. It has no default: no digest was at hand when this was written, and a made-up one would be worse than none.
# deploy/README.md says how to look it up. The build itself was not tried, for want of a Docker daemon;
# a drill in tests/deploy/test_image.py runs its Python steps in a fresh virtual environment.
ARG BASE
FROM ${BASE}

# Ray's launcher copies files into the container with rsync, and the head reaches its workers by ssh. gcc builds what
# torch.compile makes for GPUs.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ openssh-client rsync \
  && rm -rf /var/lib/apt/lists/*

# The user id is that of the machine's first user, who owns the files that the launcher brings.
RUN useradd --create-home --uid 1000 --shell /bin/bash ray

# The dependencies come first: a change of the code then costs no second download. torch brings CUDA's libraries; the
# driver is the machine's.
WORKDIR /opt/asap-ray
COPY requirements.runtime.lock ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements.runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY asap asap
COPY jobs jobs
COPY serve serve
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .

COPY --chmod=755 deploy/supervise /usr/local/bin/supervise
COPY --chmod=755 deploy/ship_logs.py /usr/local/bin/ship-logs

USER ray
WORKDIR /home/ray
# Ray's launcher reads HOME from the image.
ENV HOME=/home/ray
# NVIDIA's runtime, which the launcher chooses on machines with a GPU, gives the GPUs to containers that ask like this.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A log file of Ray is cut at 32 MiB, and five are kept.
ENV RAY_ROTATION_MAX_BYTES=33554432 RAY_ROTATION_BACKUP_COUNT=5
CMD ["bash"]
