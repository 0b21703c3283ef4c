"""CLIP in OpenAI's state dict, the layout that open_clip shares, as transformers' ``CLIPModel``."""

from __future__ import annotations

import math
import re
from pathlib import Path

from utils import UserError, one_line, warn

import torch

from models.checkpoint import check_weights, read_tensors
from models.convert import OPENAI_UNUSED, Tensors, from_openai_clip
from models.hub import beside
from models.processor import WRONG, open_clip_fields

OPENAI = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")  # one vocabulary
NAMES = {  # OpenAI's names, and those of its files -> the hub's
    "vit-b-32": OPENAI[0], "vit-b-16": "openai/clip-vit-base-patch16", "vit-l-14": OPENAI[1],
    "vit-l-14-336px": "openai/clip-vit-large-patch14-336",
    "vit-l-14-336": "openai/clip-vit-large-patch14-336"}
OPEN_CLIP = "open_clip_config.json"

# What open_clip's description may hold: what shapes repeat, is read below, or is of training; and
# settings with the value that changes nothing. What is empty or False is a setting left alone.
READ = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "layers", "width",
        "patch_size", "image_size", "mlp_ratio", "head_width", "patch_dropout", "context_length",
        "vocab_size", "heads"}
NEUTRAL = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",),
           "proj_type": ("linear",), "block_type": ("default",), "eos_id": (2,),
           "attn_pooler_queries": (256,), "attn_pooler_heads": (8,), "timm_pool": ("avg",),
           "timm_proj": ("linear",), "hf_model_pretrained": (True,), "hf_proj_type": ("mlp",),
           "hf_pooler_type": ("mean_pooler",)}


def openai_name(source: str) -> str | None:
    """OpenAI's name of a CLIP (``ViT-B/32``), its file's (``ViT-B-32.pt``) or open_clip's
    (``ViT-B-32-quickgelu``) -> the hub's; None for another. UserError for a CLIP with a ResNet."""
    name = re.sub(r"[/@_]", "-", source.lower().removesuffix(".pt")).removesuffix("-quickgelu")
    if re.fullmatch(r"rn\d+(x\d+)?", name):
        raise UserError(f"{source} is a CLIP with a ResNet; only those with a ViT are known here: "
                        f"{', '.join(sorted(set(NAMES.values())))}")
    return NAMES.get(name)


def openai_clip(path: Path) -> tuple[torch.nn.Module, object, dict] | None:
    """(transformers' CLIPModel, its tokenizer, preprocessing) of a state dict in OpenAI's layout,
    which open_clip shares; None where the file is another.

    What shapes do not tell (activation, heads, preparation of photos) is read from open_clip's
    ``open_clip_config.json`` beside the file. Without it the model is taken to be OpenAI's own: one
    line says so, except where the file bears the marks of OpenAI's archives. The file brings no
    vocabulary; that is taken from its folder, else from the hub's cache. Raises UserError for what
    does not fit.
    """
    tensors, metadata = read_tensors(path)
    if metadata or "visual.conv1.weight" not in tensors:
        return None
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    silence_transformers()
    described = beside(path, OPEN_CLIP)
    if not described and not set(OPENAI_UNUSED) & set(tensors):
        warn(f"{path} has no {OPEN_CLIP} beside it: quick GELU, and photos prepared as for "
             "OpenAI's CLIP, are assumed")
    try:
        model_cfg = _open_clip_model(described, path)
        tensors = from_openai_clip(tensors, path)
        check_weights(tensors, path)
        patches = tensors["vision_model.embeddings.patch_embedding.weight"]
        places = tensors["vision_model.embeddings.position_embedding.weight"]
        contexts = tensors["text_model.embeddings.position_embedding.weight"]
        vocabulary = len(tensors["text_model.embeddings.token_embedding.weight"])
        tokenizer = CLIPTokenizer.from_pretrained(_clip_tokenizer(path))
        if len(tokenizer) != vocabulary:
            raise UserError(f"the tokenizer for {path} has {len(tokenizer)} tokens, the model "
                            f"{vocabulary}; they do not belong together")
        side = patches.shape[-1] * math.isqrt(len(places) - 1)
        vision, text = (_tower(tensors, tower, model_cfg) for tower in ("vision", "text"))
        config = CLIPConfig(
            text_config=text | {
                "vocab_size": vocabulary, "max_position_embeddings": len(contexts),
                "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id},
            vision_config=vision | {"patch_size": patches.shape[-1], "image_size": side},
            projection_dim=len(tensors["text_projection.weight"]))
        model = CLIPModel.from_pretrained(None, config=config, state_dict=tensors,
                                          dtype=torch.float32)
        prepared = open_clip_fields(described.get("preprocess_cfg") or {}, (side, side), path)
    except (*WRONG, RuntimeError, OSError) as error:
        raise UserError(f"{path} is no CLIP of OpenAI's: {one_line(error)[:200]}") from None
    return model.eval(), tokenizer, prepared


def _open_clip_model(described: dict, path: Path) -> dict:
    """``model_cfg`` of open_clip's description, a quick GELU where there is none. UserError for a
    setting that would change what the model computes, and is not known here."""
    if not described:
        return {"quick_gelu": True}
    model_cfg = described["model_cfg"]
    settings = [*model_cfg.items(), *model_cfg["vision_cfg"].items(),
                *model_cfg["text_cfg"].items()]
    odd = [f"{key} {value}" for key, value in settings
           if value and key not in READ and value not in NEUTRAL.get(key, ())]
    if odd:
        raise UserError(f"{path} is a CLIP that is not known here: its {OPEN_CLIP} asks for "
                        f"{', '.join(odd)}")
    return model_cfg


def _tower(tensors: Tensors, tower: str, model_cfg: dict) -> dict:
    """The size of a tower from its tensors; activation and heads from ``model_cfg``. Heads are 64
    wide where nothing else is said, but for open_clip's text tower, which then has 8."""
    layers = [key for key in tensors if key.startswith(tower) and key.endswith("mlp.fc1.weight")]
    hidden, width = tensors[layers[0]].shape
    told = model_cfg.get(f"{tower}_cfg")
    heads = width // ((told or {}).get("head_width") or 64)
    if tower == "text" and told is not None:
        heads = told.get("heads") or 8
    return {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(layers),
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"}


def _clip_tokenizer(path: Path) -> Path:
    """The folder with the vocabulary for OpenAI's CLIP."""
    from huggingface_hub import try_to_load_from_cache

    kinds = "tokenizer.json", "merges.txt"
    cached = [try_to_load_from_cache(name, kind) for name in OPENAI for kind in kinds]
    for folder in (path.parent, *(Path(file).parent for file in cached if isinstance(file, str))):
        if any((folder / kind).is_file() for kind in kinds):
            return folder
    raise UserError(f"the vocabulary of {path} is missing: put tokenizer.json (or vocab.json and "
                    f"merges.txt) of {OPENAI[0]} beside it")


def silence_transformers() -> None:
    """No remarks and no bars of its own: what is wrong becomes one line of ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
