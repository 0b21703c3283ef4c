"""Checkpoints: one .safetensors file that describes itself, and foreign state dicts, read safely.

The metadata of a file holds one JSON object (key ``checkpoint``): ``format``, ``kind``
(``classifier``, …), the model's name and arguments, labels, preprocessing, recipe, metrics with
the data they were measured on, and licence. A script needs nothing but the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from utils import UserError, one_line, whole_file

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.hub import weights_in
from models.pickled import read_pickle, refuse_other_kinds

FORMAT = 1
WRAPPERS = r"((module|model|_orig_mod)\.)*"  # what training puts before every key


def save_checkpoint(
    path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write ``tensors`` (floating ones as ``dtype``) and ``metadata`` to one file, whole. UserError
    for numbers that are not finite, or not in ``dtype``: nothing is written."""
    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        .contiguous()
        for name, tensor in tensors.items()
    }
    odd = _not_finite(stored)
    if odd:
        raise UserError(f"{path} was not written: {odd[0]} holds NaN or infinity, or numbers too "
                        f"large for {dtype}")
    text = json.dumps({"format": FORMAT, **metadata})
    with whole_file(path) as temporary:
        # "pt" is what other libraries look for; ours is the second key.
        save_file(stored, temporary, metadata={"format": "pt", "checkpoint": text})


def record_measurement(path: str | Path, data_name: str, result: dict) -> None:
    """Write what was measured on ``data_name`` into the checkpoint's own metadata."""
    tensors, metadata = read_tensors(path)
    if "kind" not in metadata:
        raise UserError(f"{path} is not a checkpoint of this project: nothing is recorded in it")
    metadata["measured"] = {**metadata.get("measured", {}), data_name: result}
    save_checkpoint(path, tensors, metadata)


def load_checkpoint(path: str | Path, *kinds: str) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a checkpoint of ours, of one of ``kinds``; UserError for others."""
    tensors, metadata = read_tensors(path)
    if "kind" not in metadata:
        raise UserError(f"{path} is not a checkpoint of this project (it describes no model); "
                        "plain weights go to train --weights")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}")
    if metadata["kind"] not in kinds:
        raise UserError(f"{path} is a {metadata['kind']} checkpoint, a {' or '.join(kinds)} is "
                        "needed")
    return tensors, metadata


def read_tensors(
    path: str | Path, averaged: bool = False
) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a .safetensors, .pth, .pt, .bin or .ckpt file, or of a folder's.

    The content, not the name, tells safetensors from pickles. A file of others has no metadata, {};
    ``module.`` and ``model.`` before its keys are taken off. ``averaged`` asks for the moving
    average of the weights (EMA) that some trainings keep beside them.
    Pickles are read with ``weights_only=True`` alone: a file with code in it is refused unrun.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; download_ckpt.sh fetches those that "
                        "ckpt/checkpoints.json lists")
    if not os.path.getsize(path):
        raise UserError(f"checkpoint {path} is empty; fetch or train it again")
    if _is_pickle(path):
        return without_prefix(read_pickle(path, averaged), WRAPPERS, path), {}
    if averaged:
        raise UserError(f"{path} is a .safetensors file, which holds no averaged (EMA) weights "
                        "beside others")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        refuse_other_kinds(path)
        raise UserError(f"cannot read checkpoint {path} (truncated or not safetensors?): "
                        f"{one_line(error)}") from None
    if not isinstance(metadata, dict) or not metadata:
        return without_prefix(tensors, WRAPPERS, path), {}
    return tensors, metadata


def _is_pickle(path: Path) -> bool:
    """By the first bytes, where they tell; else by the name."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # the length of a JSON header stands before it
        return False
    return path.suffix != ".safetensors" or head.startswith((b"PK\x03\x04", b"\x80\x02"))


def without_prefix(
    tensors: dict[str, torch.Tensor], prefix: str, source: object
) -> dict[str, torch.Tensor]:
    """``tensors`` with ``prefix``, a regular expression, taken off the keys that have it."""
    bare = {key[re.match(prefix, key).end():]: tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        twice = next(key for key in tensors if key not in bare)
        raise UserError(f"{source} holds some tensors twice, with and without a prefix: {twice}, …")
    return bare


def rebuild(
    build: Callable[[], torch.nn.Module], tensors: dict[str, torch.Tensor], source: object
) -> torch.nn.Module:
    """The model that ``build`` makes of what a file says of itself, with the file's tensors, in
    eval mode.

    It is made on the meta device, so that a model which the tensors do not fit costs no memory,
    however large, and one that they fit no random weights. Raises UserError for what is wrong.
    """
    try:
        with torch.device("meta"):
            model = build()
        check_fit(model, tensors, source)
        if dict(model.named_buffers()).keys() <= model.state_dict().keys():
            model.to_empty(device="cpu")
        else:  # what no file keeps must be computed
            model = build()
    except Exception as error:  # a wrong description fails anywhere in timm and torch
        if isinstance(error, UserError) and str(source) in str(error):
            raise
        missing = " is missing" * isinstance(error, KeyError)
        raise UserError(f"{source} describes its model wrongly: {one_line(error)}{missing}"
                        ) from None
    load_strict(model, tensors, source)
    return model.eval()


def load_strict(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: object,
    only: Collection[str] | None = None,
) -> None:
    """Copy ``tensors`` into ``model``; a key missing, left over or misshapen is named.

    Where ``only`` these names are to be there, the model keeps the rest as it is. UserError also
    for weights that are not finite.
    """
    check_fit(model, tensors, source, only)
    check_weights(tensors, source)
    model.load_state_dict({**model.state_dict(), **tensors})


def check_fit(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: object,
    only: Collection[str] | None = None,
) -> None:
    """UserError that names keys missing, left over, of another shape, or of integers for floats."""
    state = model.state_dict()
    expected = {key: state[key] for key in (state if only is None else only)}
    refuse_misfits({
        "missing": [key for key in expected if key not in tensors],
        "left over": [key for key in tensors if key not in expected],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in tensors and tensors[key].shape != expected[key].shape
        ],
        "of another type": [
            f"{key} {tensors[key].dtype}" for key in expected
            if key in tensors
            and tensors[key].is_floating_point() != expected[key].is_floating_point()
        ],
    }, source, "the model")


def refuse_misfits(problems: dict[str, list[str]], source: object, target: str) -> None:
    """UserError that names the first keys of each problem of ``source`` with ``target``, if any."""
    found = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
             for what, keys in problems.items() if keys]
    if found:
        raise UserError(f"{source} does not fit {target}: {'; '.join(found)}")


# --- finite numbers -----------------------------------------------------------------------------


def check_weights(tensors: dict[str, torch.Tensor], source: object) -> None:
    """UserError that names the tensors of ``source`` with NaN or infinity in them, if any. Takes
    0.05 s for the 86 million weights of a ViT-B."""
    odd = _not_finite(tensors)
    if odd:
        raise UserError(f"{source} holds {len(odd)} tensors with NaN or infinity in them "
                        f"({', '.join(odd[:3])}{', …' * (len(odd) > 3)}): its training diverged, "
                        "or the file is damaged; use another checkpoint")


def check_output(values: torch.Tensor, source: object) -> None:
    """UserError that names the checkpoint ``source`` where what its model computed is not finite.
    Once a batch it costs next to nothing."""
    if _not_finite({"": values}):
        raise UserError(f"{source} computes NaN or infinity: its weights are damaged or too large; "
                        "use another checkpoint, or try --precision fp32")


def _not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    names = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            if tensor.element_size() == 1:  # float8 has no minimum
                tensor = tensor.float()
            if not all(math.isfinite(extreme) for extreme in tensor.aminmax()):  # NaN is both
                names.append(name)
    return names


# --- digest -------------------------------------------------------------------------------------


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors under their names, as float32: the same for every file that holds them."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        total.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
