# The subcommands of tpu_vm.sh, which reads the options and sources this file.
# shellcheck shell=bash disable=SC2154

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ask() {  # runs a command for its answer; shows its messages only if it fails
  [ -z "$dry_run" ] || { call "$@"; return; }
  local messages code=0
  messages=$(mktemp "$scratch/XXXXXX")
  "$@" 2>"$messages" || { code=$?; cat "$messages" >&2; }
  return "$code"
}

on_workers() {  # call|ask COMMAND: a shell command on all workers of all slices at once
  local node id started=() code=0
  for node in "${nodes[@]}"; do
    "$1" "${ssh[@]}" "$node" "${where[@]}" --worker=all --command="$2" &
    started+=($!)
  done
  for id in "${started[@]}"; do wait "$id" || code=$?; done
  return "$code"
}

describe() {  # queued-resources|tpu-vm NAME FORMAT
  ask gcloud compute tpus "$1" describe "$2" "${where[@]}" --format="value($3)"
}

unanswered=0
look_at() {  # DEFAULT queued-resources|tpu-vm NAME FORMAT: sets `state`
  if state=$(describe "${@:2}" 2>&1); then
    unanswered=0
  elif [[ $state == *NOT_FOUND* ]]; then
    state=$1
  else
    echo "$state" >&2
    state=UNKNOWN
    ((++unanswered < 10)) || die "gcloud failed ten times in a row, as its messages say."
  fi
}

state=''
look() {  # sets `state`: the request's, or once it is ACTIVE a node's that is not READY
  local node before=$state
  look_at ABSENT queued-resources "$name" state.state
  for node in "${nodes[@]}"; do
    [[ $dry_run || $state == ACTIVE || $state == READY ]] || break
    look_at TERMINATED tpu-vm "$node" state
  done
  [ "$state" = "$before" ] || say "$name is $state."
}

look_at_run() {  # prints a line for each worker
  local status="bash blt_jax/launch/worker.sh status 2>/dev/null || echo new"
  on_workers ask "echo \"\$(hostname): \$($status)\""
}

create() {
  call "${request[@]}" || {
    local code=$?
    say "gcloud could not create $name; its message is above. Where the name is in use, delete" \
      "that TPU, choose another name, or go on with the subcommand watch."
    return "$code"
  }
  while look; [[ ! $dry_run && $state != READY ]]; do
    case $state in FAILED | SUSPENDED | PREEMPTED | TERMINATED) why; return 1 ;; esac
    sleep "$poll"
  done
}

why() {  # a request failed
  say "$(describe queued-resources "$name" state.failedData.error.message)"
}

pack() {  # all but what git ignores
  git ls-files --cached --others --exclude-standard -z >"$scratch/files" || return
  call tar -czf "$scratch/blt_jax.tgz" --null --files-from="$scratch/files"
}

setup() {
  local node
  [ -e "$scratch/blt_jax.tgz" ] || pack || return
  for node in "${nodes[@]}"; do
    call "${scp[@]}" "$scratch/blt_jax.tgz" "$node:" "${where[@]}" --worker=all || return
  done
  on_workers call "mkdir -p blt_jax && tar -xzf blt_jax.tgz -C blt_jax && \
bash blt_jax/launch/worker.sh setup"
}

run() {
  on_workers call "bash blt_jax/launch/worker.sh start$(printf ' %q' "${train[@]}")"
}

status() {
  look
  [[ ! $dry_run && $state != READY ]] || look_at_run
}

logs() {
  local node worker count code=0
  call mkdir -p "$logs"
  for node in "${nodes[@]}"; do
    count=$(describe tpu-vm "$node" "networkEndpoints.len()") || return
    for ((worker = 0; worker < ${count:-1}; worker++)); do
      call "${scp[@]}" "$node:blt_jax/worker.log" "$logs/$node-$worker.log" "${where[@]}" \
        --worker="$worker" || code=$?
    done
  done
  return "$code"
}

stop() {
  on_workers call "bash blt_jax/launch/worker.sh stop"
}

delete() {
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force
}

# --- Until the run is done

watch() {
  [ -z "$dry_run" ] || { create && setup && run && look_at_run; return; }
  pack  # now, so that the run keeps its code whatever becomes of this tree
  while look; do
    case $state in
      READY) ! follow || return 0 ;;
      ABSENT) { create && begin; } || failed $? ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED)
        delete || failed $? ;;  # and create it anew
    esac
    sleep "$poll"
  done
}

follow() {  # true when the run is done
  local workers
  workers=$(look_at_run) || return
  case $workers in
    *": new"*) begin || failed $? ;;
    *": running"*) ;;
    *": waiting"*) say "Another trainer has the run's folder; trying again."; run || failed $? ;;
    *": failed"*)
      say "The run failed:"
      on_workers ask "! grep -q failed blt_jax/worker.status || tail -n 20 blt_jax/worker.log"
      failed 1
      run || failed $? ;;
    *": preempted"*) say "The run was interrupted and goes on."; run || failed $? ;;
    *) say "The run is done. $name is still there; delete it when you need it no more." ;;
  esac
  [[ $workers != *": "[!d]* ]]
}

begin() {
  setup && run
}

failures=0 since=0
failed() {  # CODE: counts failures within an hour, but not those of a TPU that is going away
  look
  [[ $state == READY || $state == ABSENT ]] || return 0
  ((SECONDS - since < 3600)) || failures=0
  failures=$((failures + 1)) since=$SECONDS
  ((failures <= max_failures)) ||
    die "Given up after $failures failures. $name is as it is: see logs, or delete it." "$1"
}
