#!/usr/bin/env bash
# Makes the report of the homework: every question with its command, figures, tables and numbers.
#   bash hw3_report.sh OUT_DIR                  on the sample photos, with the shipped models
#   bash hw3_report.sh OUT_DIR --year 2021 …    on your own; --help lists the options
# Only POSIX syntax is used, so `sh hw3_report.sh` works too.
set -u
unset PYTHONSAFEPATH # it would move the place on Python's path that is set below
here=$(dirname -- "$(readlink -f -- "$0")")

# Where the python3 on the PATH has no torch, the project's .venv is used.
has_torch='import sys; del sys.path[0]  # the current folder: something there may be named torch
from importlib.util import find_spec; sys.exit(find_spec("torch") is None)'
if [ -x "$here/.venv/bin/python3" ] && ! python3 -c "$has_torch" 2>/dev/null; then
    PATH="$here/.venv/bin:$PATH"
fi

# Modules come from the project's folder, not from the current one, which may hold a utils.py.
exec python3 -c 'import sys; sys.path[0] = sys.argv.pop(1)
from utils import run; from report.command import main; run(main)' "$here" "$@"
