"""State dicts in the .pth, .pt, .bin and .ckpt files of other libraries, read safely.

A training puts more into its file than weights, and the weights under one name or another. The
state dict is looked for under the names that are in use; where the file leaves a choice, one line
says what was taken. Pickles are read with ``weights_only=True`` alone: what they would run, or
build besides tensors, is not run and not built.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

from utils import UserError, one_line, warn

import torch

Tensors = dict[str, torch.Tensor]
Route = tuple[str, ...]  # the keys that lead to a state dict inside a file

# Where trainings keep their weights. DINO (Caron et al. 2021, Sec. 3.1) evaluates its teacher.
PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights",
         "params", "teacher", "student")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model",
            "ema", "params_ema")
DEEPEST = 3  # wrappers inside wrappers


class _Ignored:
    """Takes the place of an object that holds no weights, whatever a file says of it."""

    def __new__(cls, *args):
        return super().__new__(cls)

    def __init__(self, *args) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _IgnoredDict(_Ignored, dict):
    """The same for a dictionary of a class of its own."""


# What trainings of timm, of Lightning and of numpy users leave beside the weights.
IGNORED = [
    *((_Ignored, name) for name in (
        "argparse.Namespace", "numpy.dtype", "numpy.ndarray",
        *(f"pathlib{part}.{system}Path" for part in ("", "._local")
          for system in ("Posix", "Windows")),
        *(f"numpy.{core}.multiarray.{kind}" for core in ("core", "_core")
          for kind in ("scalar", "_reconstruct")))),
    *((_IgnoredDict, f"{package}.AttributeDict") for package in (
        "lightning.fabric.utilities.data", "lightning_fabric.utilities.data",
        "pytorch_lightning.utilities.parsing")),
]


def read_pickle(path: Path, averaged: bool = False) -> Tensors:
    """The state dict in ``path``, or the moving average of it (EMA) that the training kept beside
    it, where ``averaged``. Raises UserError for what is no state dict of plain tensors."""
    tensors = _unwrapped(_load(path), path, averaged)
    odd = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    if odd:
        raise UserError(f"{path} was not loaded: {odd[0]} is sparse, quantized, or larger than "
                        "what is stored of it; save plain tensors")
    return tensors


def _load(path: Path) -> object:
    try:
        with (warnings.catch_warnings(), torch.serialization.safe_globals(IGNORED),
              path.open("rb") as file):  # of a path, torch would look at the name
            warnings.simplefilter("ignore")  # the refusal below says it in one line
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refuse_other_kinds(path)
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} was not loaded: it holds code or objects besides tensors"
            f"{f' ({named[1]})' if named else ''}, or is damaged; save a plain state dict, "
            "torch.save(model.state_dict(), 'weights.pth')") from None
    except Exception as error:  # a damaged file fails in many ways inside torch's reader
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive, which holds code; save its weights "
                            "alone, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
                            ) from None
        refuse_other_kinds(path)
        raise UserError(f"cannot read checkpoint {path} (truncated?): {one_line(error)}") from None


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether each element is stored: a few bytes can claim to be a tensor of any size."""
    return (tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
            and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size())


# --- wrappers -----------------------------------------------------------------------------------


def _unwrapped(content: object, path: Path, averaged: bool) -> Tensors:
    found = _state_dicts(content)
    means = {route: tensors for route, tensors in found.items() if set(route) & set(AVERAGED)}
    others = {route: tensors for route, tensors in found.items() if route not in means}
    known = sorted((route for route in others if not route or set(route) & set(PLAIN)), key=_rank)
    if averaged and not means:
        raise UserError(f"{path} holds no averaged (EMA) weights; it holds "
                        f"{_listed(others) or 'no state dict'}")
    if averaged:
        return means[min(means, key=len)]
    if known and [_rank(route) for route in known].count(_rank(known[0])) == 1:
        if len(known) > 1:
            warn(f"{path} holds several state dicts, {_listed(known)}: the first is used")
        if means:
            warn(f"{path} also holds averaged (EMA) weights, {_listed(means)}, which are not used "
                 "(the p1 scripts take them with --ema-weights)")
        return others[known[0]]
    rest = dict.fromkeys(known) or others or means
    if len(rest) == 1:
        warn(f"{path}: the weights are taken from {_listed(rest)}")
        return found[next(iter(rest))]
    if rest:
        raise UserError(f"{path} holds several state dicts, {_listed(rest)}: save the one that is "
                        "meant to a file of its own")
    if isinstance(content, dict) and any(
            "param_groups" in part for part in (content, *content.values())
            if isinstance(part, dict)):
        raise UserError(f"{path} holds the state of an optimizer and no weights: save "
                        "model.state_dict()")
    raise UserError(f"{path} holds no state dict (names to tensors)")


def _state_dicts(content: object, route: Route = ()) -> dict[Route, Tensors]:
    """Every state dict in ``content``, by the keys that lead to it."""
    if not isinstance(content, dict):
        return {}
    if content and all(isinstance(key, str) and torch.is_tensor(value)
                       for key, value in content.items()):
        return {route: content}
    found = {}
    for key, value in content.items() if len(route) < DEEPEST else ():
        if isinstance(key, str):  # optimizers number their state
            found |= _state_dicts(value, (*route, key))
    return found


def _rank(route: Route) -> int:
    return min((PLAIN.index(key) for key in route if key in PLAIN), default=-1)


def _listed(routes) -> str:
    return ", ".join(".".join(route) for route in routes)


# --- what a file is -----------------------------------------------------------------------------

KINDS = (
    (b"\x89HDF", "an HDF5 file, as Keras writes it: weights of PyTorch are needed"),
    (b"GGUF", "a GGUF file, of llama.cpp: weights of PyTorch are needed"),
    (b"\x1f\x8b", "a gzip archive: unpack it, and give the file with the weights"),
    (b"BZh", "a bzip2 archive: unpack it, and give the file with the weights"),
    (b"\xfd7zXZ", "an xz archive: unpack it, and give the file with the weights"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it, and give the file with the weights"),
    (b"Rar!", "a RAR archive: unpack it, and give the file with the weights"),
    (b"\xff\xd8\xff", "a JPEG photo, not weights"),
    (b"\x89PNG", "a PNG picture, not weights"),
    (b"%PDF", "a PDF document, not weights"),
)
PRINTABLE = bytes(range(32, 127)) + b"\t\r\n"


def refuse_other_kinds(path: Path) -> None:
    """UserError that says what a file is which certainly holds no PyTorch weights; nothing where
    it may be a damaged checkpoint."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((kind for start, kind in KINDS if head.startswith(start)), None)
    if text.startswith(b"version https://git-lfs"):
        kind = ("a Git LFS pointer, which stands for the weights: run git lfs pull in its folder, "
                "or download the file itself")
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        kind = ("a web page, not weights: download it again, and look at the address in a browser "
                "(it may ask for a login)")
    elif head[257:262] == b"ustar":
        kind = "a tar archive: unpack it, and give the file with the weights"
    elif zipfile.is_zipfile(path):
        kind = _kind_of_zip(path)
    elif head and not head.translate(None, PRINTABLE):
        kind = f'a text file, not weights; it starts with "{one_line(head.decode())[:40]}"'
    if kind:
        raise UserError(f"cannot read checkpoint {path}: it is {kind}")


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged archive
        return None
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz), not of PyTorch tensors"
    return (f"a zip archive of {', '.join(names[:3])}{', …' * (len(names) > 3)}: unpack it, and "
            "give the file with the weights")

