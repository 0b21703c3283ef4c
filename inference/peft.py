"""PEFT captioners over a frozen base: opening them, and counting what they train (docs/peft.md)."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

from utils import UserError

import torch

from ckpt import registry
from data.files import markdown_table
from models.captioner import Captioner
from models.captioner_files import load_captioner
from models.checkpoint import load_checkpoint, open_file
from models.gpt2 import GPT2Config
from models.peft import LIMIT, OPTIONS, count_parts, insert, load_peft, method_of, trained
from models.vit import Encoder, build_vit
from models.vit_gpt2 import ViTGPT2, gpt2_base

COURSE_ENCODER = "vit_large_patch16_224"  # 1024 wide


# --- the base, and the captioner over it --------------------------------------------------------


@dataclass(frozen=True)
class BaseSource:
    """Where the frozen base of a PEFT captioner comes from: the options of ``add_base_options``."""

    base: str | Path  # a language model with its encoder
    decoder: str | Path | None = None  # GPT-2 weights in place of the base's language model
    encoder: str | None = None  # timm's name of a ViT in place of the base's encoder
    weights: str | Path | None = None  # of that ViT
    pretrained: bool = False  # whether that ViT has timm's weights

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> BaseSource:
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def open(self) -> Captioner:
        """The base. UserError for options that do not go together and for files that do not fit."""
        if self.encoder and not self.decoder:
            raise UserError("--encoder goes with --decoder; --base has an encoder of its own")
        if bool(self.encoder) != bool(self.weights or self.pretrained):
            raise UserError("--encoder NAME goes with --weights FILE or --pretrained")
        if self.encoder:
            vit = build_vit(self.encoder, self.pretrained, self.weights)
            return gpt2_base(vit, self.decoder)
        if Path(self.base) == registry.BASE and not registry.BASE.exists():
            raise UserError(f"{registry.BASE} does not exist: give --base FILE, which "
                            "p2_caption.py pretrain makes, or --decoder FILE with --encoder NAME")
        base = load_captioner(self.base, "base")
        if self.decoder:
            encoder = Encoder(base.encoder, base.preprocessing, base.architecture)
            return gpt2_base(encoder, self.decoder)
        return base

    def words(self) -> str:
        """The options as one would type them."""
        is_default = self.decoder and Path(self.base) == registry.BASE
        options = {"--decoder": self.decoder, "--base": None if is_default else self.base,
                   "--encoder": self.encoder, "--weights": self.weights}
        words = [str(word) for pair in options.items() if pair[1] for word in pair]
        return shlex.join(words + ["--pretrained"] * self.pretrained)

    def with_encoder_of(self, metadata: dict, folder: Path) -> BaseSource:
        """With --decoder and no --encoder: the encoder of the PEFT file that has ``metadata``.
        Where its weights came from a file, one of that name is looked for in ``folder``, then
        where download_ckpt.sh puts files."""
        encoder = metadata.get("encoder", {})
        pretrained, weights = encoder.get("pretrained"), encoder.get("weights")
        own = self.encoder or self.weights or self.pretrained
        if own or not self.decoder or not (pretrained or weights):
            return self
        if weights:
            name = Path(weights).name  # a name, not a path that a stranger chose
            places = [place / name for place in (folder, registry.FOLDER,
                                                 registry.FOLDER / "fetched")]
            weights = next((place for place in places if place.exists()), places[0])
        return replace(self, encoder=encoder["name"], pretrained=bool(pretrained), weights=weights)


def open_checkpoint(checkpoint: str | Path, source: BaseSource | None = None) -> Captioner:
    """The captioner of a file, in eval mode; of a PEFT file, over the base that ``source`` names
    (default: the one that ships).

    Raises UserError for a PEFT file of another base, with the command that trains one for this; and
    for a ``source`` where the file is a captioner of its own.
    """
    over = source or BaseSource(registry.BASE)
    if source and not Path(checkpoint).exists():
        raise UserError(f"{checkpoint} does not exist: give a PEFT file as --checkpoint or "
                        "$HW3_P2_CKPT; python3 peft_caption.py train --method adapter "
                        f"{over.words()} --images DIR --captions JSON --out DIR makes one")
    file = open_file(checkpoint)
    if file.metadata.get("kind") == "peft":
        over = over.with_encoder_of(file.metadata, Path(checkpoint).parent)
        return load_peft(file, over.open(), over.words())
    captioner = load_captioner(file)
    if source:
        raise UserError(f"{checkpoint} is a whole captioner, which needs no {over.words()}; leave "
                        "this out, or give a PEFT file as --checkpoint or $HW3_P2_CKPT")
    return captioner


# --- counting -----------------------------------------------------------------------------------


def count_file(checkpoint: str | Path) -> dict:
    """How many parameters a PEFT file holds, by part, as ``params`` prints it."""
    tensors, metadata = load_checkpoint(checkpoint, "peft")
    parts = count_parts(tensors)
    return {"checkpoint": str(checkpoint), "method": metadata["method"],
            "trained_parameters": sum(parts.values()), "parts": parts,
            "fewer_than_the_course_allows": sum(parts.values()) < LIMIT,
            "bytes": Path(checkpoint).stat().st_size, "base": metadata["base"]}


def given_sizes(args: argparse.Namespace) -> dict:
    """The size options of all methods, None where one is not given."""
    return {key: getattr(args, key) for options in OPTIONS.values() for key in options}


def sizes_table(cross_width: int | None, sizes: dict) -> str:
    """Trained parameters of each method over GPT-2 small with a ViT-L, as a Markdown table.

    ``sizes`` as in ``given_sizes``. Models are built on the meta device, which takes no memory.
    """
    rows, config = [], GPT2Config(cross_width=None)
    with torch.device("meta"):
        vit = build_vit(COURSE_ENCODER)
        base = ViTGPT2(vit.model, config, SimpleNamespace(vocab_size=config.vocab_size),
                       vit.preprocessing, vit.architecture)
        for name in OPTIONS:
            method = method_of(name, cross_width, **{key: sizes[key] for key in OPTIONS[name]})
            parts = count_parts(trained(insert(base, method)))
            total, cross_attention = sum(parts.values()), parts["cross_attention"]
            chosen = ", ".join(f"{key.replace('_', ' ')} {value}"
                               for key, value in method.options.items() if isinstance(value, int))
            rows.append([name, chosen, f"{total:,}", f"{cross_attention:,}",
                         f"{total - cross_attention:,}", f"{2 * total / 1e6:.1f}",
                         "yes" if total < LIMIT else "no"])
    return markdown_table(["method", "size", "trained parameters", "cross-attention", "the rest",
                           "file (MB)", f"fewer than {LIMIT:,}"], rows)
