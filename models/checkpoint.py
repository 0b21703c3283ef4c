"""Checkpoints: one .safetensors file that describes itself, and foreign state dicts, read safely.

The metadata of a file holds one JSON object (key ``checkpoint``): ``format``, ``kind``
(``classifier``, …), the model's name and arguments, labels, preprocessing, recipe, metrics with
the data they were measured on, and licence. A script needs nothing but the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from utils import UserError, check_writable, one_line, whole_file

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = 1
WRAPPERS = r"((module|model|_orig_mod)\.)*"  # what training puts before every key


def save_checkpoint(
    path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write ``tensors`` (floating ones as ``dtype`` where that can hold them) and ``metadata`` to
    one file, whole."""
    stored = {name: _narrowed(tensor.detach().cpu(), dtype).contiguous()
              for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, **metadata})
    with whole_file(path) as temporary:
        # "pt" is what other libraries look for; ours is the second key.
        save_file(stored, temporary, metadata={"format": "pt", "checkpoint": text})


def _narrowed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` as ``dtype``; as it is where that has no such numbers. BatchNorm's running
    variance can exceed float16's 65,504."""
    narrowed = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return narrowed if narrowed.isfinite().all() else tensor


def check_recordable(source: str | Path) -> None:
    """UserError where ``record_result`` could not write into ``source``; to be called before any
    work, since it reads no tensors."""
    path, described = Path(source), False
    if path.suffix == ".safetensors":
        _check_exists(path)
        with _opened(path) as (_, metadata):
            described = "kind" in metadata
    if not described:
        raise UserError(f"{source} is not a checkpoint of this project, so --record cannot write "
                        "into it; leave --record out")
    check_writable(path)


def record_result(
    path: str | Path, data_name: str, result: dict, keys: Collection[str]
) -> None:
    """Write those ``keys`` that ``result`` has into the checkpoint's own metadata, as measured on
    ``data_name``. Raises UserError as ``check_recordable`` does."""
    check_recordable(path)
    tensors, metadata = read_tensors(path)
    kept = {key: result[key] for key in keys if key in result}
    metadata["measured"] = {**metadata.get("measured", {}), data_name: kept}
    save_checkpoint(path, tensors, metadata)


def load_checkpoint(path: str | Path, *kinds: str) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a checkpoint of this project, of one of ``kinds``; UserError for
    others."""
    tensors, metadata = read_tensors(path)
    check_kind(metadata, path, *kinds)
    return tensors, metadata


def check_kind(metadata: dict, path: str | Path, *kinds: str) -> None:
    """UserError where ``metadata``, read from ``path``, is not of a checkpoint of ``kinds``."""
    if "kind" not in metadata:
        raise UserError(f"{path} is not a checkpoint of this project (it describes no model); "
                        "plain weights go to train --weights")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}")
    if metadata["kind"] not in kinds:
        raise UserError(f"{path} is a {metadata['kind']} checkpoint, a {' or '.join(kinds)} is "
                        "needed")


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a .safetensors, .pth, .pt or .bin file.

    A file of others has no metadata, {}; ``module.`` and ``model.`` before its keys are taken off.
    Pickles are read with ``weights_only=True`` alone: a file with code in it is refused unrun.
    """
    path = Path(path)
    _check_exists(path)
    if path.suffix != ".safetensors":
        return without_prefix(_read_pickle(path), WRAPPERS, path), {}
    with _opened(path) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return (tensors if metadata else without_prefix(tensors, WRAPPERS, path)), metadata


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; download_ckpt.sh fetches those that "
                        "ckpt/checkpoints.json lists")
    if not os.path.getsize(path):
        raise UserError(f"checkpoint {path} is empty; fetch or train it again")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    """(the open .safetensors file, what it says of itself, {} for a file of others); UserError
    where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
            yield file, metadata if isinstance(metadata, dict) else {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read checkpoint {path} (truncated or not safetensors?): "
                        f"{one_line(error)}") from None


def without_prefix(
    tensors: dict[str, torch.Tensor], prefix: str, source: object
) -> dict[str, torch.Tensor]:
    """``tensors`` with ``prefix``, a regular expression, taken off the keys that have it."""
    bare = {key[re.match(prefix, key).end():]: tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        twice = next(key for key in tensors if key not in bare)
        raise UserError(f"{source} holds some tensors twice, with and without a prefix: {twice}, …")
    return bare


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the refusal below says it in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} was not loaded: it holds code or objects besides tensors, or is "
                        "damaged; save a plain state dict") from None
    except Exception as error:  # a damaged file fails in many ways inside torch's reader
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive, which holds code; save its weights "
                            "alone, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
                            ) from None
        raise UserError(f"cannot read checkpoint {path} (truncated?): {one_line(error)}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(
            isinstance(key, str) and torch.is_tensor(value) for key, value in content.items()):
        raise UserError(f"{path} holds no state dict (names to tensors)")
    odd = [name for name, tensor in content.items() if not _is_plain(tensor)]
    if odd:
        raise UserError(f"{path} was not loaded: {odd[0]} is sparse, quantized, or larger than "
                        "what is stored of it; save plain tensors")
    return content


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether each element is stored: a few bytes can claim to be a tensor of any size."""
    return (tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
            and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size())


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

    Where ``only`` these names are to be there, the model keeps the rest as it is.
    """
    check_fit(model, tensors, source, only)
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


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors under their names, as float32: the same for every file that holds them."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        total.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
