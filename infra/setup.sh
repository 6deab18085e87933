# shellcheck shell=bash
# Makes .venv in the repository root and installs Driftline into it. Sourced by demo.sh and test.sh; defines
# functions only. To renew the pins: bash infra/setup.sh pins
#
#   driftline_setup        checks what the machine has, makes or refreshes .venv; sets ROOT and VENV
#   driftline_pins         resolves pyproject.toml anew into infra/constraints.txt

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
EXTRAS="device,cloud,dev"
CONSTRAINTS="$ROOT/infra/constraints.txt"

_say() { printf '%s\n' "$*" >&2; }

# The first Python that answers and is new enough; a launcher that is there but does not run (pyenv's) is passed over.
_find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    [ -n "$name" ] || continue
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

# Prints the newest major release among the Java of JAVA_HOME and the one on PATH; nothing where there is none.
_java_major() {
  local java line best=''
  for java in "${JAVA_HOME:+$JAVA_HOME/bin/java}" java; do
    [ -n "$java" ] || continue
    line="$("$java" -version 2>&1 | sed -n 's/.*version "\(1\.\)\{0,1\}\([0-9][0-9]*\).*/\2/p' | head -n 1)" || true
    if [ -n "$line" ] && [ "$line" -gt "${best:-0}" ]; then best="$line"; fi
  done
  printf '%s' "$best"
}

# Kafka comes from bootstrap servers, a KAFKA_HOME, jars fetched before, or Maven (infra/broker); say early what is
# missing. Only a warning: the tests that need no Kafka run without it, and `driftline` explains each way.
_check_kafka() {
  local major cached
  [ -z "${DRIFTLINE_KAFKA__BOOTSTRAP:-}" ] || return 0
  major="$(_java_major)"
  if [ -z "$major" ]; then
    _say "missing: Java 17 or later, which Kafka needs. Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk"
  elif [ "$major" -lt 17 ]; then
    _say "too old: Java $major; Kafka needs 17 or later. Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk"
  fi
  [ -z "${KAFKA_HOME:-}" ] || return 0
  command -v mvn >/dev/null 2>&1 && return 0
  for cached in "${XDG_CACHE_HOME:-${HOME:-/}/.cache}"/driftline/kafka-*/libs "${HOME:-/}"/Library/Caches/driftline/kafka-*/libs; do
    [ -d "$cached" ] && return 0
  done
  _say "missing: Maven, which fetches Kafka once. Debian, Ubuntu: apt-get install maven; macOS: brew install maven; or set KAFKA_HOME"
}

# What the environment was installed from; when it is unchanged there is nothing to do.
_fingerprint() {
  cat "$ROOT/pyproject.toml" "$CONSTRAINTS" "$ROOT/infra/setup.sh" | cksum
  printf '%s|%s|%s\n' "$EXTRAS" "$ROOT" "${UV_TORCH_BACKEND:-}"
}

_make_venv() {
  local python="$1"
  if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
    return 0
  fi
  if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    _say "missing: the venv module of $("$python" --version). Debian, Ubuntu: apt-get install python3-venv"
    return 1
  fi
  _say "making $VENV with $("$python" --version)"
  "$python" -m venv --clear "$VENV"
}

driftline_setup() {
  local python stamp="$VENV/.driftline-stamp" wanted
  _check_kafka
  wanted="$(_fingerprint)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$VENV/bin/python" -c '' >/dev/null 2>&1; then
    return 0
  fi
  if ! python="$(_find_python)"; then
    _say "missing: Python 3.11 or later (python3 is $(python3 --version 2>&1 || true)). Debian, Ubuntu: apt-get install python3 python3-venv; or name one in PYTHON"
    return 1
  fi
  _make_venv "$python" || return 1
  rm -f "$stamp"
  _say "installing Driftline and what it needs into $VENV (some minutes the first time)"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv -c "$CONSTRAINTS" || return 1
  # Bytecode now, for every process that starts later: without it, and where Python may not write any, each of them
  # compiles torch anew, which takes longer than its work.
  (cd "$ROOT" && "$VENV/bin/uv" pip install --quiet --compile-bytecode --python "$VENV/bin/python" -e ".[$EXTRAS]" -c infra/constraints.txt) || {
    _say "the installation failed; the lines above say why"
    return 1
  }
  printf '%s\n' "$wanted" >"$stamp"
}

# The CUDA libraries stay free, so that UV_TORCH_BACKEND=cpu can leave them out. The lowest Python decides the pins.
driftline_pins() {
  (
    cd "$ROOT" || exit 1
    printf 'uv\n' | "$VENV/bin/uv" pip compile --quiet --upgrade --python-version 3.11 \
      --extra device --extra cloud --extra dev --extra compare \
      --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
      pyproject.toml - | grep -Ev '^(nvidia-|cuda-|triton==)' >"$CONSTRAINTS.new" &&
      mv "$CONSTRAINTS.new" "$CONSTRAINTS"
  )
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  case "${1:-}" in
    '') driftline_setup ;;
    pins) driftline_setup && driftline_pins ;;
    *) _say "usage: bash infra/setup.sh [pins]"; exit 2 ;;
  esac
fi
