#!/usr/bin/env bash
# Fetches and verifies the checkpoints that ckpt/checkpoints.json lists.
#   bash download_ckpt.sh             what the shell scripts use by default
#   bash download_ckpt.sh NAME …      these; --list shows the names, --help everything else
set -u
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

exec python3 -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); import ckpt.download as script
script.run(script.main)' "$here" "$@"
