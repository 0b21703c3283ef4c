#!/usr/bin/env bash
# Labels a folder of images.
#   bash hw3_1.sh IMAGES OUT.csv                  ViT classifier (2021)
#   bash hw3_1.sh IMAGES id2label.json OUT.csv    CLIP zero-shot over the names (2022, 2023)
set -u
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

case $# in
2)
    exec python3 "$here/p1_vit_classify.py" predict --images="$1" --output="$2"
    ;;
3)
    exec python3 "$here/clip_zeroshot.py" predict --images="$1" --labels="$2" --output="$3"
    ;;
*)
    echo "hw3_1.sh: expected IMAGES OUT.csv, or IMAGES id2label.json OUT.csv; got $# arguments" >&2
    exit 2
    ;;
esac
