#!/usr/bin/env bash
# Sets Driftline up if needed and runs `driftline demo` with the arguments given.
set -euo pipefail
# shellcheck source=infra/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
driftline_setup
exec "$VENV/bin/driftline" demo "$@"
