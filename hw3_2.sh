#!/usr/bin/env bash
# Captions a folder of images, or shows which part of the image each word of a caption looked at.
#   bash hw3_2.sh IMAGES OUT.json                     captions (2022)
#   bash hw3_2.sh IMAGES OUT.json decoder_model.bin   captions by a PEFT checkpoint over GPT-2 (2023)
#   bash hw3_2.sh IMAGES OUT_DIR                      figures of the cross-attention (2021)
#   bash hw3_2.sh IMAGES OUT_DIR decoder_model.bin    the same of a PEFT checkpoint (2023)
# Only POSIX syntax is used, so `sh hw3_2.sh` works too.
set -u
unset PYTHONSAFEPATH # it would keep Python from finding the modules beside the script
here=$(dirname -- "$(readlink -f -- "$0")")

# Where the python3 on the PATH has no torch, the project's .venv is used.
has_torch='import sys; del sys.path[0]  # the current folder: something there may be named torch
from importlib.util import find_spec; sys.exit(find_spec("torch") is None)'
if [ -x "$here/.venv/bin/python3" ] && ! python3 -c "$has_torch" 2>/dev/null; then
    PATH="$here/.venv/bin:$PATH"
fi

case "$# ${2-}" in
"2 "*.[jJ][sS][oO][nN] | "2 /dev/"*)
    exec python3 "$here/p2_caption.py" predict --images="$1" --output="$2"
    ;;
"3 "*.[jJ][sS][oO][nN] | "3 /dev/"*)
    exec python3 "$here/peft_caption.py" predict --images="$1" --output="$2" --decoder="$3"
    ;;
"2 "*)
    exec python3 "$here/p2_attn_vis.py" --images="$1" --output="$2"
    ;;
"3 "*)
    exec python3 "$here/p2_attn_vis.py" --images="$1" --output="$2" --decoder="$3"
    ;;
*)
    expected="expected IMAGES OUT.json or IMAGES OUT_DIR, and decoder_model.bin after either"
    printf '%s\n' "hw3_2.sh: $expected (arguments given: $#)" >&2
    exit 2
    ;;
esac
