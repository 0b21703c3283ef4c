#!/usr/bin/env bash
# Labels a folder of images.
#   bash hw3_1.sh IMAGES OUT.csv                  with the ViT classifier (2021), or the mean of
#                                                 several: HW3_P1_CKPT="A:B"
#   bash hw3_1.sh IMAGES id2label.json OUT.csv    with CLIP, by the names in the JSON (2022, 2023)
# Only POSIX syntax is used, so `sh hw3_1.sh` works too.
set -u
unset PYTHONSAFEPATH # it would keep Python from finding the modules beside the script
here=$(dirname -- "$(readlink -f -- "$0")")

# Where the python3 on the PATH has no torch, the project's .venv is used.
has_torch='import sys; del sys.path[0]  # the current folder: something there may be named torch
from importlib.util import find_spec; sys.exit(find_spec("torch") is None)'
if [ -x "$here/.venv/bin/python3" ] && ! python3 -c "$has_torch" 2>/dev/null; then
    PATH="$here/.venv/bin:$PATH"
fi

expected="expected IMAGES OUT.csv, or IMAGES id2label.json OUT.csv"
case "$# ${3-${2-}}" in
"2 "*.[cC][sS][vV] | "2 /dev/"*)
    exec python3 "$here/p1_vit_classify.py" predict --images="$1" --output="$2"
    ;;
"3 "*.[cC][sS][vV] | "3 /dev/"*)
    exec python3 "$here/clip_zeroshot.py" predict --images="$1" --labels="$2" --output="$3"
    ;;
"2 "* | "3 "*)
    printf '%s\n' "hw3_1.sh: the last argument must end in .csv, not ${3-$2}; $expected" >&2
    exit 2
    ;;
*)
    printf '%s\n' "hw3_1.sh: $expected (arguments given: $#)" >&2
    exit 2
    ;;
esac
