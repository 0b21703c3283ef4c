#!/usr/bin/env bash
# Captions a folder of images, or shows what each word of a caption looked at.
#   bash hw3_2.sh IMAGES OUT.json                     captions (2022)
#   bash hw3_2.sh IMAGES OUT.json decoder_model.bin   captions by a PEFT checkpoint over GPT-2 (2023)
#   bash hw3_2.sh IMAGES OUT_DIR                      cross-attention figures (2021)
set -u
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

case "$#:${2-}" in
2:*.json)
    exec python3 "$here/p2_caption.py" predict --images="$1" --output="$2"
    ;;
3:*.json)
    exec python3 "$here/peft_caption.py" predict --images="$1" --output="$2" --decoder="$3"
    ;;
2:*)
    exec python3 "$here/p2_attn_vis.py" --images="$1" --output="$2"
    ;;
*)
    echo "hw3_2.sh: expected IMAGES OUT.json, IMAGES OUT.json decoder_model.bin, or IMAGES OUT_DIR" >&2
    exit 2
    ;;
esac
