# What tpu_vm.sh and gke.sh share: help, errors, commands that are shown before they run.
# shellcheck shell=bash disable=SC2154

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "launch/${0##*/}"; }

say() { [ "$dry_run" ] || echo "$(date +%T) $*" >&2; }

die() {  # MESSAGE [CODE]
  echo "${0##*/}: $1" >&2
  exit "${2:-1}"
}

need() {  # OPTION...: that have no default
  local option
  for option in "$@"; do
    [ "${!option}" ] || die "$subcommand needs --$option=...; see --help." 2
  done
}

need_whole() {  # LEAST OPTION...: of a number
  local option least=$1
  for option in "${@:2}"; do
    if ! [[ ${!option} =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((${!option} < least)); then
      die "--$option=${!option} must be a whole number, $least or more." 2
    fi
  done
}

need_config() {  # among the settings of the run
  local setting found=''
  for setting in "${train[@]}"; do
    case $setting in --config=*)
      found=${setting#*=} found=${found%%:*}
      [ -f "$found" ] || die "This tree has no file '$found' for --config." 2 ;;
    esac
  done
  [ "$found" ] || die "$subcommand needs --config=FILE; see --help." 2
}

need_program() {  # PROGRAM WHERE_FROM
  [ "$dry_run" ] || command -v "$1" >/dev/null || die "$1 is not installed: $2" 127
}

exec 3>&1  # where commands are shown, also from within $(...)

call() {  # shows a command and runs it
  local word
  for word in "$@"; do
    case $word in
      *\'*) printf '%q ' "$word" ;;
      *[!a-zA-Z0-9_./:=,@+-]*) printf "'%s' " "$word" ;;
      *) printf '%s ' "$word" ;;
    esac
  done >&3
  echo >&3
  [ "$dry_run" ] || "$@"
}
