#!/usr/bin/env bash
# What runs on each worker of a pod; launch/tpu_vm.sh and launch/gke.sh call it there.
# Usage: bash launch/worker.sh setup                 makes the environment
#        bash launch/worker.sh start COMMAND...      runs on when ssh ends, writes worker.log
#        bash launch/worker.sh supervise COMMAND...  the same in the foreground
#        bash launch/worker.sh status                new, running, done, preempted, waiting or failed
#        bash launch/worker.sh stop                  lets the command save and ends it
set -euo pipefail
cd "$(dirname "$0")/.."

setup() {  # with a Python of its own where the system's is too old, as on Ubuntu 22.04
  if [ -z "${PYTHON:-}" ] && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'
  then
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    PYTHON=$(python3 -m uv python find 3.12)
  fi
  source launch/env.sh "[tpu,gcs]"
}

start() {
  stop
  rm -f worker.status
  echo "== $(date): $*" >>worker.log
  PATH="$PWD/.venv/bin:$PATH" setsid nohup bash launch/worker.sh supervise "$@" \
    >>worker.log 2>&1 </dev/null &
  echo $! >worker.pid
}

supervise() {  # a command that SIGTERM stops ends well, but the run is not done
  local child='' preempted='' code=0 result='done'
  trap 'preempted=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
  "$@" &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do  # a signal interrupts `wait`
    code=0
    wait "$child" || code=$?
  done
  if [ "$preempted" ]; then
    code=143 result=preempted
  elif ((code == 75)); then
    result=waiting  # another trainer has the run's folder
  elif ((code)); then
    result="failed with exit code $code"
  fi
  echo "== $(date): $result"
  echo "$result" >worker.status.tmp
  mv worker.status.tmp worker.status
  exit "$code"
}

status() {
  if [ -e worker.status ]; then
    cat worker.status
  elif ! [ -e worker.pid ]; then
    echo new
  elif kill -0 "$(cat worker.pid)" 2>/dev/null; then
    echo running
  else
    echo "failed: killed"
  fi
}

stop() {
  if [ ! -e worker.pid ] || [ -e worker.status ]; then return; fi
  local pid seconds
  pid=$(cat worker.pid)
  kill -TERM "$pid" 2>/dev/null || true
  for ((seconds = 0; seconds < 300; seconds++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 1
  done
  kill -KILL -- "-$pid" 2>/dev/null || true  # the whole group: it may have workers of its own
}

case ${1:-} in
  setup | start | supervise | status | stop) "$@" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
