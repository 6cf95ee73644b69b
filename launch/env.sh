# shellcheck shell=bash
# Makes and enters the project's environment; sourced by the other scripts.
# Usage: source launch/env.sh EXTRAS     "" for none, or as in "[dev]"
# PYTHON chooses the interpreter, VENV the folder.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || return
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "blt_jax needs Python 3.11 or newer; set PYTHON to one." >&2; exit 1; }
[ -d "$VENV" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$1"
export PATH="$PWD/$VENV/bin:$PATH"
