#!/usr/bin/env bash
# Makes .venv and installs pinned packages into it. Usage: deploy/setup.sh LOCK_FILE...
# Nothing is resolved: the lock files are complete, so pip installs exactly them (--no-deps).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local name
    for name in ${PYTHON:-} python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            printf '%s' "$name"
            return
        fi
    done
    say "Python 3.11 or 3.12 is needed, and was not found (python3 is $(python3 --version 2>&1 || true))."
    say "On Debian 12: apt-get install python3 python3-venv. Or name one: make serve PYTHON=/path/to/python3.12"
    exit 1
}

make_venv() {
    local python=$1 package
    "$python" -c 'import ensurepip, venv' 2>/dev/null && "$python" -m venv .venv && return
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "This Python cannot make virtual environments: installing Debian's $package."
        apt-get update -qq && apt-get install -y -qq "$package" >/dev/null && "$python" -m venv .venv && return
    fi
    say "This Python cannot make virtual environments. As root: apt-get install $package"
    exit 1
}

# pip tells every package it collects; show how far it is instead.
progress() {
    awk -v total="$1" '
        /^(Collecting|Processing) / { n++; printf "\r\033[K  %d of %d  %s", n, total, $2 > "/dev/stderr"; next }
        /^Installing collected/ { printf "\r\033[K  unpacking" > "/dev/stderr"; next }
        /^ERROR|^error|^  ERROR/ { printf "\n%s\n", $0 > "/dev/stderr" }
        END { if (n) printf "\r\033[K  installed\n" > "/dev/stderr" }'
}

[ -x .venv/bin/python ] || make_venv "$(find_python)"
locks=()
for lock in "$@"; do locks+=(-r "$lock"); done
say "Installing $* into .venv (some minutes the first time)"
.venv/bin/python -m pip install --disable-pip-version-check --no-deps --progress-bar off "${locks[@]}" |
    progress "$(cat "$@" | grep -c '==')"
.venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
