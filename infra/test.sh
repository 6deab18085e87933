#!/usr/bin/env bash
# Sets Driftline up if needed, lints, type-checks and tests. Arguments go to pytest, which runs in the repository root,
# a file at a time on each of two processes: half of the tests wait for a broker that is away, or for a worker to die.
set -euo pipefail
# shellcheck source=infra/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
driftline_setup

cd "$ROOT"
export PATH="$VENV/bin:$PATH"
for step in "ruff check ." "ruff format --check ." "mypy" "lint-imports"; do
  printf '== %s\n' "$step" >&2
  $step
done
printf '== pytest %s\n' "$*" >&2
exec python -m pytest -n 2 --dist loadfile "$@"
