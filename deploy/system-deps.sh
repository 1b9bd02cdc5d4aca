#!/usr/bin/env bash
# What the tests with published clients need of the system. Usage:
#   deploy/system-deps.sh        install what is missing of Debian's packages, as root
#   deploy/system-deps.sh check  say what is missing, and how to get it
set -euo pipefail

# Each is the name of a command and of the package that holds it.
PACKAGES=(chromium espeak-ng redis-server)
LEAST_NODE=20

say() { printf '%s\n' "$*" >&2; }

missing() {
    local name
    for name in "${PACKAGES[@]}"; do command -v "$name" >/dev/null || printf '%s ' "$name"; done
}

check() {
    local absent found
    absent=$(missing)
    [ -z "$absent" ] || say "Not installed: ${absent% }. As root: make system-deps"
    found=$(node -p 'process.versions.node' 2>/dev/null || echo none)
    if ! command -v npm >/dev/null || [ "$found" = none ] || [ "${found%%.*}" -lt "$LEAST_NODE" ]; then
        say "Node.js $LEAST_NODE or newer with npm is needed; found: $found. See https://nodejs.org"
        return 1
    fi
    [ -z "$absent" ]
}

install() {
    local absent log
    absent=$(missing)
    [ -n "$absent" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "These must be installed by root on Debian or Ubuntu: ${absent% }. On other systems install them by hand."
        return 1
    fi
    say "Installing Debian's ${absent% }."
    log=$(mktemp)
    # shellcheck disable=SC2086  # one word for each package
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $absent; } \
        >"$log" 2>&1; then
        say "apt-get could not install ${absent% }. Its last words:"
        tail -n 15 "$log" >&2
        return 1
    fi
    rm "$log"
}

case "${1:-install}" in
    check) check ;;
    install) install ;;
    *) say "Usage: $0 [check]" && exit 2 ;;
esac
