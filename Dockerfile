# blt_jax on TPUs, for launch/gke.sh. It runs as root, to whom the TPU devices belong.
FROM python:3.12-slim
WORKDIR /blt_jax
COPY . .
RUN pip install --no-cache-dir '.[tpu,gcs]'
CMD ["python", "-m", "blt_jax.train", "--help"]
