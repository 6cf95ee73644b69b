#!/usr/bin/env bash
# Makes an environment and runs all tests on CPU.
# Usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "$0")/env.sh" "[dev]"
exec python -m pytest "$@"
