"""PEFT captioners over a frozen base: opening them, and counting what they train."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

from utils import UserError, markdown_table, resolve_run_options

import torch

from ckpt import registry
from inference.caption import BATCH
from models.captioner_files import load_captioner
from models.checkpoint import load_checkpoint
from models.gpt2 import GPT2Config
from models.peft import (
    LIMIT,
    OPTIONS,
    count_parts,
    insert,
    load_peft,
    method_of,
    trained,
)
from models.vit import Encoder, build_vit
from models.vit_gpt2 import ViTGPT2, gpt2_base

COURSE_ENCODER = "vit_large_patch16_224"  # 1024 wide


# --- the base, and what stands over it ----------------------------------------------------------


def open_base(args) -> ViTGPT2:
    """The frozen base that the options of a command name."""
    if args.encoder and not args.decoder:
        raise UserError("--encoder goes with --decoder; --base has an encoder of its own")
    if bool(args.encoder) != bool(args.weights or args.pretrained):
        raise UserError("--encoder NAME goes with --weights FILE or --pretrained")
    if args.encoder:
        return gpt2_base(build_vit(args.encoder, args.pretrained, args.weights), args.decoder)
    if Path(args.base) == registry.BASE and not registry.BASE.exists():
        raise UserError(f"{registry.BASE} is not there: give --base FILE, which "
                        "p2_caption.py pretrain makes, or --decoder FILE with --encoder NAME")
    base = load_captioner(args.base, "base")
    if args.decoder:
        return gpt2_base(Encoder(base.encoder, base.preprocessing, base.architecture), args.decoder)
    return base


def base_words(args) -> str:
    """The options that name the base, as one would type them."""
    words = ["--decoder", args.decoder] if args.decoder else []
    words += ["--base", args.base] if not args.decoder or Path(args.base) != registry.BASE else []
    words += ["--encoder", args.encoder] if args.encoder else []
    words += ["--weights", args.weights] if args.weights else []
    return shlex.join(words + ["--pretrained"] * bool(args.pretrained))


def open_peft(args) -> ViTGPT2:
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


def sizes_table(args) -> str:
    """Trained parameters of each method over GPT-2 small with a ViT-L, counted without memory."""
    rows, config = [], GPT2Config(cross_width=None)
    with torch.device("meta"):
        vit = build_vit(COURSE_ENCODER)
        base = ViTGPT2(vit.model, config, SimpleNamespace(vocab_size=config.vocab_size),
                       vit.preprocessing, vit.architecture)
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
