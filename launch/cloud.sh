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

need_config() {  # among the settings of the run
  local setting
  for setting in "${train[@]}"; do
    case $setting in --config=*)
      setting=${setting#*=}
      [ -e "${setting%%:*}" ] || die "This tree has no file ${setting%%:*} for --config." 2
      return ;;
    esac
  done
  die "$subcommand needs --config=FILE; see --help." 2
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
