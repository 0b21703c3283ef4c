"""Checkpoints: one .safetensors file that describes itself; and other programs' state dicts, read
safely.

The metadata of a file holds one JSON object (key ``checkpoint``): ``format``, ``kind``
(``classifier``, …), the model's name and arguments, labels, preprocessing, recipe, metrics with
the data they were measured on, and licence. A script needs nothing but the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import UserError, one_line, whole_file

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.files import check_writable
from models.hub import weights_in
from models.pickled import read_pickle, refuse_other_kinds

FORMAT = 1
WRAPPERS = r"((module|model|_orig_mod)\.)*"  # what training puts before every key


def save_checkpoint(
    path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write ``tensors`` (floating ones as ``dtype`` where that can hold them) and ``metadata`` to
    one file, whole. UserError for numbers that are not finite: nothing is written."""
    stored = {name: _narrowed(tensor.detach().cpu(), dtype).contiguous()
              for name, tensor in tensors.items()}
    odd = _not_finite(stored)
    if odd:
        raise UserError(f"{path} was not written: {odd[0]} holds NaN or infinity")
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


@dataclass(frozen=True)
class Opened:
    """A checkpoint file that has been read, so that the code that looked at its kind can pass its
    tensors on."""

    path: str | Path
    tensors: dict[str, torch.Tensor]
    metadata: dict  # {} in a file that another program wrote


def open_file(source: str | Path | Opened) -> Opened:
    """Read a file; one that has been read is returned as it is."""
    return source if isinstance(source, Opened) else Opened(source, *read_tensors(source))


def load_checkpoint(
    source: str | Path | Opened, *kinds: str
) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a checkpoint of this project that is of one of ``kinds``; UserError
    for any other file."""
    file = open_file(source)
    check_kind(file.metadata, file.path, *kinds)
    return file.tensors, file.metadata


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


def read_tensors(
    path: str | Path, averaged: bool = False
) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, metadata) of a .safetensors, .pth, .pt, .bin or .ckpt file, or of a folder's.

    The content, not the name, tells safetensors from pickles. A file that another program wrote
    has no metadata, {}; ``module.`` and ``model.`` before its keys are removed. ``averaged`` asks
    for the moving average of the weights (EMA) that some trainings keep beside them. Pickles are
    read with ``weights_only=True`` only: a file with code in it is refused, and the code never
    runs.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
    _check_exists(path)
    if _is_pickle(path):
        return without_prefix(read_pickle(path, averaged), WRAPPERS, path), {}
    if averaged:
        raise UserError(f"{path} is a .safetensors file, which holds no averaged (EMA) weights "
                        "beside others")
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
        refuse_other_kinds(path)
        raise UserError(f"cannot read checkpoint {path} (truncated or not safetensors?): "
                        f"{one_line(error)}") from None


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
    """``tensors`` with ``prefix``, a regular expression, removed from the keys that have it."""
    bare = {key[re.match(prefix, key).end():]: tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        twice = next(key for key in tensors if key not in bare)
        raise UserError(f"{source} holds some tensors twice, with and without a prefix: {twice}, …")
    return bare


def rebuild(
    build: Callable[[], torch.nn.Module], tensors: dict[str, torch.Tensor], source: object
) -> torch.nn.Module:
    """The model that ``build`` makes from a file's description, with the file's tensors, in eval
    mode.

    Shapes are checked on the meta device first: a wrong file allocates nothing, a right one skips
    random initialization. Raises UserError for a wrong description and for tensors that do not
    fit.
    """
    try:
        with torch.device("meta"):
            model = build()
        check_fit(model, tensors, source)
        if dict(model.named_buffers()).keys() <= model.state_dict().keys():
            model.to_empty(device="cpu")
        else:  # buffers that no file stores must be computed
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
    """Copy ``tensors`` into ``model``; UserError as in ``check_fit``.

    With ``only``, exactly these names are expected, and the model's other tensors stay as they are.
    UserError also for weights that are not finite.
    """
    check_fit(model, tensors, source, only)
    check_weights(tensors, source)
    model.load_state_dict({**model.state_dict(), **tensors})


def check_fit(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: object,
    only: Collection[str] | None = None,
) -> None:
    """UserError that names keys that are missing, left over, of another shape, or integers in place
    of floats."""
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


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, where ``model`` is its wrapper for several processes
    (``DistributedDataParallel``)."""
    return getattr(model, "module", model)


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
