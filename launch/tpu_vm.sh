#!/usr/bin/env bash
# Trains on TPU VMs of Google Cloud. One command is enough:
#
#   bash launch/tpu_vm.sh watch --name=blt-1b --zone=us-central2-b --project=PROJECT \
#     --type=v4-128 --spot --config=configs/tpu_v4.py --config.workdir=gs://BUCKET/blt-1b
#
# Subcommands
#   create  requests the TPU and waits until it is ready
#   setup   copies this working tree to all workers and installs it there
#   run     starts python -m blt_jax.train on all workers; it needs no connection to go on
#   watch   does whatever of this is missing until the run is done: creates the TPU anew after
#           a preemption and continues the run, starts a run that failed again
#   status  tells how the TPU is, and the run on each worker
#   logs    copies the log of each worker
#   stop    ends the run, which saves a checkpoint first
#   delete  deletes the TPU
#
# Options
#   --name=NAME          of the TPU
#   --zone=ZONE          default: CLOUDSDK_COMPUTE_ZONE
#   --project=ID         default: CLOUDSDK_CORE_PROJECT
#   --type=TYPE          v4-128, v5litepod-256, v5p-128, v6e-256, ...
#   --slices=N           so many of this type, joined by the data center's network; default: 1
#   --spot, --reserved   instead of TPUs on demand
#   --version=VERSION    of the VMs' software; default: the one for the type
#   --create_flag=FLAG   another for gcloud compute tpus queued-resources create; repeatable
#   --ssh_flag=FLAG      another for gcloud compute tpus tpu-vm ssh and scp; repeatable
#   --config...=VALUE    settings of the run, as python -m blt_jax.train takes them
#   --poll=SECONDS       from one look at the TPU to the next; default: 30
#   --max_failures=N     watch gives up a run that fails more often, never an hour in between;
#                        default: 3
#   --logs=FOLDER        for logs; default: runs/logs
#   --dry_run            prints the commands and runs nothing
#   --help               prints this
set -euo pipefail

cd "$(dirname "$0")/.."
source launch/cloud.sh

subcommand=${1:-} name='' type='' version='' slices=1 poll=30 max_failures=3 dry_run=''
zone=${CLOUDSDK_COMPUTE_ZONE:-} project=${CLOUDSDK_CORE_PROJECT:-} logs=runs/logs
request=(gcloud compute tpus queued-resources create)
ssh=(gcloud compute tpus tpu-vm ssh) scp=(gcloud compute tpus tpu-vm scp)
train=(python -m blt_jax.train)
case $subcommand in
  create | setup | run | watch | status | logs | stop | delete) shift ;;
  --help) usage; exit ;;
  *) usage >&2; die "There is no subcommand '$subcommand'." 2 ;;
esac
for option in "$@"; do
  case $option in
    --name=* | --zone=* | --project=* | --type=* | --version=* | --logs=* | \
      --slices=* | --poll=* | --max_failures=*)
      option=${option#--}
      printf -v "${option%%=*}" %s "${option#*=}" ;;
    --spot | --reserved) request+=("$option") ;;
    --create_flag=*) request+=("${option#*=}") ;;
    --ssh_flag=*) ssh+=("${option#*=}") scp+=("${option#*=}") ;;
    --config=* | --config.*=*) train+=("$option") ;;
    --dry_run) dry_run=1 ;;
    --help) usage; exit ;;
    *) die "There is no option '$option'; --help lists them all." 2 ;;
  esac
done

need name zone project logs
case $subcommand in create | watch) need type ;; esac
case $subcommand in run | watch) need_config ;; esac
need_whole 1 slices max_failures
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll=$poll must be a number of seconds." 2
need_program gcloud https://cloud.google.com/sdk/docs/install

case $version/$type in
  /v2-* | /v3-* | /v4-*) version=tpu-ubuntu2204-base ;;
  /v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  /v5p-*) version=v2-alpha-tpuv5 ;;
  /v6e-*) version=v2-alpha-tpuv6e ;;
  /?*) die "The software for VMs of type $type is not known here; give --version=VERSION." 2 ;;
esac
where=(--zone="$zone" --project="$project" --quiet)
request+=("$name" "${where[@]}" --accelerator-type="$type" --runtime-version="$version")
if ((slices == 1)); then
  nodes=("$name")
  request+=(--node-id="$name")
else
  for ((i = 0; i < slices; i++)); do nodes[i]=$name-$i; done
  request+=(--node-count="$slices" --node-prefix="$name")
fi

source launch/tpu_vm_steps.sh
"$subcommand"; exit  # in one line, which is read before a long watch
