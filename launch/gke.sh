#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster through xpk (pip install xpk), which starts the run again
# after a preemption:
#
#   bash launch/gke.sh image --image=us-docker.pkg.dev/PROJECT/REPOSITORY/blt_jax:1
#   bash launch/gke.sh run --image=us-docker.pkg.dev/PROJECT/REPOSITORY/blt_jax:1 \
#     --name=blt-1b --cluster=CLUSTER --zone=us-central2-b --project=PROJECT --type=v4-128 \
#     --config=configs/tpu_v4.py --config.workdir=gs://BUCKET/blt-1b
#
# Subcommands
#   image   builds this working tree's image and pushes it
#   run     starts python -m blt_jax.train in it on all workers; prints where its logs are
#   status  tells how the run is
#   delete  ends the run
#
# Options
#   --name=NAME        of the run
#   --cluster=CLUSTER  made by xpk cluster create
#   --zone=ZONE        default: CLOUDSDK_COMPUTE_ZONE
#   --project=ID       default: CLOUDSDK_CORE_PROJECT
#   --image=IMAGE      name and tag in a registry that the cluster reads
#   --type=TYPE        v4-128, v5litepod-256, v5p-128, v6e-256, ...
#   --slices=N         so many of this type; default: 1
#   --max_restarts=N   after preemptions; default: 100
#   --config...=VALUE  settings of the run, as python -m blt_jax.train takes them
#   --dry_run          prints the commands and runs nothing
#   --help             prints this
set -euo pipefail

cd "$(dirname "$0")/.."
source launch/cloud.sh

subcommand=${1:-} name='' cluster='' image='' type='' slices=1 max_restarts=100 dry_run=''
zone=${CLOUDSDK_COMPUTE_ZONE:-} project=${CLOUDSDK_CORE_PROJECT:-}
train=(exec bash launch/worker.sh supervise python -m blt_jax.train)
case $subcommand in
  image | run | status | delete) shift ;;
  --help) usage; exit ;;
  *) usage >&2; die "There is no subcommand '$subcommand'." 2 ;;
esac
for option in "$@"; do
  case $option in
    --name=* | --cluster=* | --zone=* | --project=* | --image=* | --type=* | --slices=* | \
      --max_restarts=*)
      option=${option#--}
      printf -v "${option%%=*}" %s "${option#*=}" ;;
    --config=* | --config.*=*) train+=("$option") ;;
    --dry_run) dry_run=1 ;;
    --help) usage; exit ;;
    *) die "There is no option '$option'; --help lists them all." 2 ;;
  esac
done

on_cluster() {  # what all commands of xpk need
  need name cluster zone project
  need_program xpk "pip install xpk"
  where=(--workload="$name" --cluster="$cluster" --zone="$zone" --project="$project")
}

image() {
  need image
  need_program docker "https://docs.docker.com/engine/install"
  call docker build --tag="$image" .
  call docker push "$image"
}

run() {
  on_cluster
  need image type
  need_config
  need_whole 1 slices
  need_whole 0 max_restarts
  local command
  command=$(printf ' %q' "${train[@]}")
  call xpk workload create "${where[@]}" --tpu-type="$type" --num-slices="$slices" \
    --docker-image="$image" --max-restarts="$max_restarts" \
    --termination-grace-period-seconds=120 --command="${command:1}"
}

status() {
  on_cluster
  call xpk workload list "${where[@]:1}" --filter-by-job="$name"
}

delete() {
  on_cluster
  call xpk workload delete "${where[@]}" --force
}

"$subcommand"
