"""What ``peft_caption.py``'s commands share: the base that options name, training over it, opening
and measuring what was trained. Between the script and the rooms, as ``caption_training``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

from utils import UserError, markdown_table, read_json, resolve_run_options, warn, write_json

import numpy as np
import torch

from caption_training import caption_task, describe_training, fit_recipe
from captioning import BASE, BATCH, caption_features, search_from
from metrics.captions import score_captions
from metrics.clipscore import clipscore, mean_interval
from models.captioner import Captioner, gpt2_base, load_captioner
from models.checkpoint import digest, load_checkpoint, read_tensors
from models.gpt2 import GPT2Config
from models.peft import (
    LIMIT,
    OPTIONS,
    Method,
    count_parts,
    identity_of,
    insert,
    load_peft,
    method_of,
    save_peft,
    trained,
)
from models.vit import build_vit

# Highest learning rate of each method, cross-attention included, which is fresh in all of them.
LR = {"cross": 3e-3, "adapter": 3e-3, "prefix": 3e-3, "lora": 3e-3, "full": 1.5e-3}
BEAMS = {"greedy": 1, "beam 3": 3}
COURSE_ENCODER = "vit_large_patch16_224"  # 1024 wide

# --- the base, and what stands over it ----------------------------------------------------------


def open_base(args) -> Captioner:
    """The frozen base that the options of a command name."""
    if args.encoder and not args.decoder:
        raise UserError("--encoder goes with --decoder; --base has an encoder of its own")
    if bool(args.encoder) != bool(args.weights or args.pretrained):
        raise UserError("--encoder NAME goes with --weights FILE or --pretrained")
    if args.encoder:
        return gpt2_base(build_vit(args.encoder, args.pretrained, args.weights), args.decoder)
    if Path(args.base) == BASE and not BASE.exists():
        raise UserError(f"{BASE} is not there: give --base FILE, which p2_caption.py pretrain "
                        "makes, or --decoder FILE with --encoder NAME")
    base = load_captioner(args.base, "base")
    if args.decoder:
        return gpt2_base((base.encoder, base.preprocessing, base.architecture), args.decoder)
    return base


def base_words(args) -> str:
    """The options that name the base, as one would type them."""
    words = ["--decoder", args.decoder] if args.decoder else []
    words += ["--base", args.base] if not args.decoder or Path(args.base) != BASE else []
    words += ["--encoder", args.encoder] if args.encoder else []
    words += ["--weights", args.weights] if args.weights else []
    return shlex.join(words + ["--pretrained"] * bool(args.pretrained))


def open_peft(args) -> Captioner:
    """The captioner of --checkpoint over the base that the options name, on the device.

    With --decoder and no --encoder, the encoder is the one that the checkpoint was trained with.
    """
    resolve_run_options(args)
    args.batch_size = args.batch_size or BATCH[args.device]
    if not Path(args.checkpoint).exists():
        raise UserError(f"{args.checkpoint} does not exist: give a PEFT file as --checkpoint or "
                        "$HW3_P2_CKPT; python3 peft_caption.py train --method adapter "
                        f"{base_words(args)} --images DIR --captions JSON --out DIR makes one")
    encoder = load_checkpoint(args.checkpoint, "peft")[1].get("encoder", {})
    if args.decoder and not args.encoder and (encoder.get("pretrained") or encoder.get("weights")):
        args.encoder, args.pretrained = encoder["name"], encoder["pretrained"]
        if encoder["weights"]:
            args.weights = str(Path(args.checkpoint).parent / encoder["weights"])
    return load_peft(args.checkpoint, open_base(args), base_words(args)).to(args.device)


def method_from(args) -> Method:
    sizes = {key: getattr(args, key) for options in OPTIONS.values() for key in options}
    return method_of(args.method, args.cross_width, **sizes)


def insert_from(args, base: Captioner) -> Captioner:
    """A captioner over ``base`` by the options. UserError where it would train more than the
    course allows."""
    captioner = insert(base, method_from(args), args.dropout)
    count = sum(count_parts(trained(captioner)).values())
    if count >= LIMIT and not args.allow_large:
        raise UserError(f"{args.method} would train {count:,} parameters, the course allows fewer "
                        f"than {LIMIT:,}: choose smaller sizes, or give --allow-large")
    return captioner


# --- training -----------------------------------------------------------------------------------


def training_base(args) -> Captioner:
    """``open_base``, seeing photos as --resize says."""
    base = open_base(args)
    if args.resize:
        base.preprocessing = base.preprocessing | {"resize": args.resize, "crop_pct": 1.0}
    return base


def train_over(base: Captioner, images: dict, val: dict, args) -> list[dict]:
    """Train ``args.method`` over ``base``; returns its history (see training.fit)."""
    torch.manual_seed(args.seed)
    args.lr = args.lr or LR[args.method]
    method, identity, captioner = method_from(args), identity_of(base), insert_from(args, base)
    changed = [name.removesuffix(".lora_A.weight").removeprefix("decoder.")
               for name in trained(captioner) if name.endswith(".lora_A.weight")]
    if changed:
        warn(f"lora changes {len(changed)} linear layers: {' '.join(changed)}")
    about = describe_training(args, {
        "captions": [Path(path).name for path in args.captions], "images": len(images)})
    about["encoder"] = {"name": base.architecture["name"], "pretrained": args.pretrained,
                        "weights": args.weights and Path(args.weights).name}

    def save(path, model, row):
        save_peft(path, model, method, identity, **about, metrics=row)

    task = caption_task(captioner, images, val, search_from(args), save, args)
    return fit_recipe(captioner, task, about["recipe"] | {"base": identity}, args)


# --- measuring ----------------------------------------------------------------------------------


class Judge:
    """Gives captions of ``paths`` their CLIPScore, by --clip or the CLIP that ships; the photos are
    encoded once."""

    def __init__(self, source: str | Path, paths: list[Path], args) -> None:
        from clip_features import about_clipscore, image_features, prepare_clip

        self.clip = prepare_clip(source, args)
        self.photos = image_features(self.clip, paths, args, "CLIPScore")[1]
        self.about = about_clipscore(self.clip, prefix="")

    def scores(self, texts: list[str]) -> np.ndarray:
        return clipscore(self.photos, texts, prefix="", encode_text=lambda part:
                         self.clip.encode_text(part).cpu().numpy())


def measure(texts: list[str], references: list[list[str]], args, judge: Judge | None) -> dict:
    """The metrics of captions and their 95 % intervals, CLIPScore where there is a judge."""
    try:
        scores, intervals, _ = score_captions(texts, references, args.bootstrap, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    if judge:
        each = judge.scores(texts)
        scores["CLIPScore"] = float(each.mean())
        intervals["CLIPScore"] = mean_interval(each, args.bootstrap, args.seed)
    return {"metrics": scores, "intervals_95": intervals}


def measure_run(
    base: Captioner, run_args, features: np.ndarray, references: list[list[str]], args,
    judge: Judge | None,
) -> dict:
    """What a run's best epoch scores on photos with ``features``; kept in result.json of its folder
    and taken from there as long as nothing that it follows from has changed."""
    best, kept = (Path(run_args.out) / name for name in ("best.safetensors", "result.json"))
    tensors = read_tensors(best)[0]
    searches = {name: dataclasses.replace(search_from(args), beams=beams)
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


def sizes_table(args) -> str:
    """Trained parameters of each method over GPT-2 small with a ViT-L, counted without memory."""
    rows, config = [], GPT2Config(cross_width=None)
    with torch.device("meta"):
        vit = build_vit(COURSE_ENCODER)
        base = Captioner(vit[0], config, SimpleNamespace(vocab_size=config.vocab_size), *vit[1:])
        for name in OPTIONS:
            own = {key: getattr(args, key) for key in OPTIONS[name]}
            method = method_of(name, args.cross_width, **own)
            parts = count_parts(trained(insert(base, method)))
            total, seen = sum(parts.values()), parts["cross_attention"]
            sizes = ", ".join(f"{key.replace('_', ' ')} {value}"
                              for key, value in method.options.items() if isinstance(value, int))
            rows.append([name, sizes, f"{total:,}", f"{seen:,}", f"{total - seen:,}",
                         f"{2 * total / 1e6:.1f}", "yes" if total < LIMIT else "no"])
    return markdown_table(["method", "size", "trained parameters", "cross-attention", "the rest",
                           "file (MB)", f"fewer than {LIMIT:,}"], rows)
