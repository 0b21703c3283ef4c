"""CLIP (Radford et al. 2021): images and texts as unit vectors in one space.

One interface, ``Clip``, over two kinds of towers: our own small ``DualEncoder`` (a checkpoint of
kind ``clip``), and transformers' ``CLIPModel``, from a folder, by its name on the hub, or with the
weights of OpenAI's state dict. Towers are modules that have

- ``image_tower()``, a module of images alone, and ``text_features(tokens)``, not normalized
- ``ids(texts)`` -> each text's token ids, of any length, the end token last
- ``pad_id``, the id that fills shorter rows
- ``context``, the largest number of tokens that the text tower reads
- ``scale()``, the logit scale: cosines are multiplied by it before the softmax
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils import UserError, one_line, warn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.transform import Transform
from models.checkpoint import (
    check_output,
    check_weights,
    digest,
    load_checkpoint,
    rebuild,
    save_checkpoint,
)
from models.clip_towers import PooledVit, TransformersTowers
from models.gpt2 import GPT2, GPT2Config, described_gpt2
from models.hub import SUFFIXES, go_offline_without_network, weights_in, without_prefix
from models.openai_clip import OPEN_CLIP, openai_clip, openai_name, silence_transformers
from models.processor import processor_fields, sized
from models.tokenizer import Tokenizer
from models.vit import build_vit, described_vit

MAX_SCALE = 100.0  # Radford et al. 2021, Sec. 2.5


@dataclass
class Clip:
    """Two towers with their preprocessing and where they come from."""

    towers: nn.Module
    preprocessing: dict  # the fields of data.Transform
    name: str  # the file, folder or hub name
    identity: str = ""  # of weights, tokenizer and preprocessing; "": features are not kept

    @property
    def transform(self) -> Transform:
        """How a photo is prepared for this model."""
        return Transform.from_fields(self.preprocessing)

    @property
    def logit_scale(self) -> float:
        """The factor of cosines before the softmax."""
        return self.towers.scale().item()

    def to(self, device: str) -> Clip:
        self.towers.to(device).eval()
        return self

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) -> (B, D) float32, rows of length 1; UserError where they
        are not finite."""
        return self.unit(self.towers.image_tower()(pixels).float())

    def unit(self, features: Tensor) -> Tensor:
        """What a tower makes, (N, D), with rows of length 1; UserError where it is not finite."""
        features = F.normalize(features, dim=1)
        check_output(features, self.name)
        return features

    @torch.inference_mode()
    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256, quiet: bool = False
    ) -> Tensor:
        """N texts -> (N, D) float32, rows of length 1; always computed in float32. ``quiet`` does
        not warn about texts that are cut."""
        device = next(self.towers.parameters()).device
        rows, parts = self.token_rows(texts, quiet), []
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(rows), batch_size):
                tokens = padded(rows[start:start + batch_size], self.towers.pad_id)
                parts.append(self.towers.text_features(tokens.to(device)))
        return self.unit(torch.cat(parts))

    def token_rows(self, texts: Sequence[str], quiet: bool = False) -> list[list[int]]:
        """Each text's token ids, at most ``context``. A longer text is cut before its end token,
        and one warning names all such texts unless ``quiet``."""
        rows, context = self.towers.ids(list(texts)), self.towers.context
        cut = [text for text, row in zip(texts, rows, strict=True) if len(row) > context]
        if cut and not quiet:
            shown = ", ".join(f'"{text[:60]}{"…" * (len(text) > 60)}"' for text in cut[:5])
            text, were = ("text is", "was") if len(cut) == 1 else ("texts are", "were")
            warn(f"{len(cut)} {text} longer than the {context} tokens that {self.name} reads and "
                 f"{were} cut: {shown}{', …' * (len(cut) > 5)}")
        return [row if len(row) <= context else [*row[:context - 1], row[-1]] for row in rows]


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Rows of ids -> (N, longest) int64."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])


def open_clip(source: str | Path) -> Clip:
    """A checkpoint of this project, a state dict of OpenAI's or open_clip's, a folder that
    transformers or open_clip wrote, or a model's name: on the hub, with or without ``hf:`` before
    it, or OpenAI's (``ViT-B/32``).

    Raises UserError where ``source`` is none of these.
    """
    path = Path(source)
    if path.is_dir() and (path / OPEN_CLIP).is_file() and not (path / "config.json").is_file():
        path = weights_in(path)
    if not path.is_file():
        name = None if path.is_dir() else openai_name(str(source))
        if name is not None:
            warn(f"{source} is OpenAI's name for hf:{name}, which is opened")
            return _open_transformers(name)
        if path.suffix not in SUFFIXES:
            return _open_transformers(without_prefix(str(source)))
    found = openai_clip(path)
    towers = TransformersTowers(*found[:2]) if found else load_clip(path)
    preprocessing = found[2] if found else towers.preprocessing
    vocabulary = sorted(found[1].get_vocab().items()) if found else towers.tokenizer.to_json()
    identity = [digest(towers.state_dict()), vocabulary, preprocessing]
    if found:  # its activation and heads, which a file beside the weights may name
        identity.append(towers.model.config.to_json_string())
    return Clip(towers, preprocessing, str(source), _hash(identity))


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# --- this project's towers ----------------------------------------------------------------------


class DualEncoder(nn.Module):
    """A timm ViT and a GPT-2 without cross-attention, each projected into one space.

    A text's feature is the last layer's output at its end token, which attends to all tokens.
    """

    def __init__(
        self, vision: nn.Module, text: GPT2Config, tokenizer: Tokenizer, width: int,
        preprocessing: dict, architecture: dict, metadata: dict | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.vocab_size != text.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the text tower "
                            f"{text.vocab_size}; they do not belong together")
        self.vision, self.text = vision, GPT2(replace(text, cross_width=None))
        self.image_proj = nn.Linear(vision.num_features, width)
        self.text_proj = nn.Linear(text.width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # its log, as in CLIP
        self.tokenizer, self.pad_id, self.context = tokenizer, tokenizer.pad_id, text.max_length
        self.preprocessing = preprocessing
        self.architecture = architecture  # of the image tower: {"name", "args"} as timm takes them
        self.metadata = metadata or {}

    @property
    def transform(self) -> Transform:
        """How a photo is prepared for this model."""
        return Transform.from_fields(self.preprocessing)

    def ids(self, texts: list[str]) -> list[list[int]]:
        return [[*self.tokenizer.encode(text), self.tokenizer.end_id] for text in texts]

    def scale(self) -> Tensor:
        return self.logit_scale.exp().clamp(max=MAX_SCALE)

    def pool(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> the input of the image tower's classification head, (B, C)."""
        return PooledVit(self.vision)(images)

    def image_tower(self) -> nn.Module:
        """images (B, 3, H, W) -> (B, D)"""
        return nn.Sequential(PooledVit(self.vision), self.image_proj)

    def image_features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W), or the output of ``pool`` for them (B, C) -> (B, D)."""
        return self.image_proj(images if images.ndim == 2 else self.pool(images))

    def text_features(self, tokens: Tensor) -> Tensor:
        """tokens (N, T), each row ended by the end token and then padded -> (N, D)."""
        end = (tokens == self.tokenizer.end_id).int().argmax(1)  # the first: padding may be equal
        where = F.one_hot(end, tokens.shape[1]).bool()
        return self.text_proj(self.text.hidden(tokens, where=where)[0])

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: images (B, 3, H, W) or (B, C) and tokens (N, T) -> features (B, D) and
        (N, D) float32 with rows of length 1, and the logit scale.

        Every trained parameter is used here: gradients are shared between processes only of what
        ``forward`` uses.
        """
        return (F.normalize(self.image_features(images).float(), dim=1),
                F.normalize(self.text_features(tokens).float(), dim=1), self.scale())


def build_clip(
    name: str, text: GPT2Config, tokenizer: Tokenizer, *, width: int = 256,
    pretrained: bool = False, weights: str | Path | None = None, **args,
) -> DualEncoder:
    """A new text tower beside a ViT called by its timm name. The ViT's weights are random, timm's
    (``pretrained``) or a file's (``weights``); ``args`` go to timm, such as ``img_size``."""
    vision, preprocessing, architecture = build_vit(name, pretrained, weights, **args)
    return DualEncoder(vision, text, tokenizer, width, preprocessing, architecture)


def save_clip(path: str | Path, model: DualEncoder, **metadata) -> None:
    """Write a checkpoint in float16; ``metadata`` adds the recipe, metrics and licence."""
    save_checkpoint(path, model.state_dict(), {
        "kind": "clip", "vision": model.architecture, "text": asdict(model.text.config),
        "width": model.image_proj.out_features, "tokenizer": model.tokenizer.to_json(),
        "preprocessing": model.preprocessing, **metadata})


def load_clip(path: str | Path) -> DualEncoder:
    """What ``save_clip`` wrote, in float32 and eval mode."""
    tensors, metadata = load_checkpoint(path, "clip")

    def build() -> DualEncoder:
        architecture, preprocessing = metadata["vision"], metadata["preprocessing"]
        return DualEncoder(described_vit(architecture, preprocessing),
                           described_gpt2(metadata["text"], tensors),
                           Tokenizer.from_json(metadata["tokenizer"]), metadata["width"],
                           preprocessing, architecture, metadata)

    return rebuild(build, tensors, path)


# --- transformers' towers -----------------------------------------------------------------------


def _open_transformers(source: str) -> Clip:
    from huggingface_hub import try_to_load_from_cache

    silence_transformers()
    folder, problem = Path(source), None
    # What is on disk asks no network, which would be waited for where there is none.
    for local_files_only in (True,) if folder.is_dir() else (True, False):
        if not local_files_only:
            go_offline_without_network()
        try:
            towers, preprocessing = _read_transformers(source, local_files_only)
            break
        except Exception as error:  # transformers and the hub raise anything
            if problem is None or isinstance(problem, OSError):  # "not found" says the least
                problem = error
    else:
        if isinstance(problem, UserError):
            raise problem
        missing = isinstance(problem, OSError) and not folder.is_dir()
        text = ("no such file or folder, and the hub does not give it (no network?)" if missing
                else one_line(problem)[:200])
        raise UserError(f"cannot open {source} as a CLIP: {text}; give a file, a folder of "
                        "transformers', or another name")
    if not folder.is_dir():
        folder = Path(try_to_load_from_cache(source, "config.json")).parent
    # Hashing gigabytes would take longer than encoding texts again.
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
             for path in sorted(folder.iterdir())]
    return Clip(towers, preprocessing, source, _hash([str(folder.resolve()), files]))


def _read_transformers(source: str, local_files_only: bool) -> tuple[TransformersTowers, dict]:
    from transformers import AutoConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    where = {"local_files_only": local_files_only}
    config = AutoConfig.from_pretrained(source, **where)
    if config.model_type != "clip":
        raise UserError(f"{source} is a {config.model_type} model; a clip is needed")
    tokenizer = CLIPTokenizer.from_pretrained(source, **where)
    # Where its files are missing, transformers makes up a tokenizer of the special tokens alone.
    if not len(tokenizer.all_special_ids) < len(tokenizer) <= config.text_config.vocab_size:
        raise UserError(f"{source} has no tokenizer of its own ({len(tokenizer)} tokens for a "
                        f"vocabulary of {config.text_config.vocab_size}); add tokenizer.json")
    side = config.vision_config.image_size
    try:
        processor = CLIPImageProcessor.get_image_processor_dict(source, **where)[0]
    except OSError:
        if not Path(source).is_dir():
            raise
        processor = {"size": {"shortest_edge": side}, "crop_size": side}
        warn(f"{source} has no preprocessor_config.json: images are prepared as OpenAI's CLIP does")
    prepared = sized(processor_fields(processor, "CLIP", source), (side, side), source)
    model, loaded = CLIPModel.from_pretrained(source, output_loading_info=True,
                                              dtype=torch.float32, **where)
    if loaded["missing_keys"]:
        raise UserError(f"{source} does not fit the model: {len(loaded['missing_keys'])} tensors "
                        f"missing ({min(loaded['missing_keys'])}, …)")
    check_weights(model.state_dict(), source)
    return TransformersTowers(model.eval(), tokenizer), prepared
