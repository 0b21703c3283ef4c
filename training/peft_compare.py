"""The comparison of PEFT methods under one budget."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from utils import read_json, write_json

import numpy as np

from inference.caption import caption_features
from inference.peft import base_words
from inference.scoring import Judge, measure
from models.checkpoint import digest, read_tensors
from models.decoding import Search
from models.peft import (
    count_parts,
    load_peft,
)
from models.vit_gpt2 import ViTGPT2

BEAMS = {"greedy": 1, "beam 3": 3}


def measure_run(
    base: ViTGPT2, run_args, features: np.ndarray, references: list[list[str]], args,
    judge: Judge | None,
) -> dict:
    """What a run's best epoch scores on photos with ``features``; kept in result.json of its folder
    and taken from there as long as nothing that it follows from has changed."""
    best, kept = (Path(run_args.out) / name for name in ("best.safetensors", "result.json"))
    tensors = read_tensors(best)[0]
    searches = {name: dataclasses.replace(Search.from_args(args), beams=beams)
                for name, beams in BEAMS.items()}
    follows_from = {
        "trained": digest(tensors), "photos": Path(features.filename).stem,
        "references": hashlib.sha256(json.dumps(references).encode()).hexdigest(),
        "bootstrap": args.bootstrap, "seed": args.seed, "clip": judge and judge.about,
        "searches": {name: dataclasses.asdict(search) for name, search in searches.items()}}
    if kept.is_file() and read_json(kept).get("follows_from") == follows_from:
        return read_json(kept)
    captioner = load_peft(best, base, base_words(args), run_args.method).to(args.device)
    result = {"trained_parameters": sum(count_parts(tensors).values()),
              "bytes": best.stat().st_size}
    for name, search in searches.items():
        texts = caption_features(captioner, features, search, args)
        result[name] = measure(texts, references, args, judge)
    write_json(result | {"follows_from": follows_from}, kept)
    return result
