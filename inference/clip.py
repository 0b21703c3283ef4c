"""Features of photos and of texts by a CLIP model, and the files that keep them.

Needs no torch to import, so that a script checks its input before torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import UserError, warn

import numpy as np

from data.batches import Unreadable, all_rows, photo_rows
from data.compute import Compute
from data.files import file_stamp
from data.processes import team
from inference.arrays import npz_writer

if TYPE_CHECKING:
    import torch

    from models.clip import Clip


def open_clip(source: str | Path) -> Clip:
    """``models.clip.open_clip``, which imports torch."""
    from models.clip import open_clip

    return open_clip(source)


# --- photos -------------------------------------------------------------------------------------


def image_features(
    clip: Clip, paths: Sequence[Path], compute: Compute, title: str = "encode"
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """(readable paths, their features (N, D) float32 with rows of length 1, the other files).

    ``clip`` is on ``compute.device``; ``title`` is that of the progress bar.
    """
    work = feature_work(clip, compute)
    blocks = photo_rows(clip.transform, paths, compute, work, title)
    readable, features, unreadable = all_rows(blocks, paths, compute)
    return readable, features if readable else np.zeros((0, 0), np.float32), unreadable


def feature_work(clip: Clip, compute: Compute) -> Callable[[torch.Tensor], np.ndarray]:
    """A function that makes the features (B, D) of a batch, for ``data.batches.photo_rows``."""
    from models.forward import Forward

    tower = Forward(clip.towers.image_tower(), compute)
    return lambda images: clip.unit(tower(images)).cpu().numpy()


def kept_image_features(
    clip: Clip, paths: Sequence[Path], compute: Compute, file: str | Path | None
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """As ``image_features``, but read from ``file`` where it holds the features that this model and
    precision computed of these files (by name, size and time); otherwise written there. Without a
    ``file`` nothing is kept.

    The .npz file's arrays are ``filenames`` (N,), ``features`` (N, D) and ``about`` (JSON).
    Raises UserError where the file holds something else.
    """
    if file is None:
        return image_features(clip, paths, compute)
    about = {"model": clip.identity, "precision": compute.precision,
             "files": [[path.name, *file_stamp(path)] for path in paths]}
    by_name = {path.name: path for path in paths}
    if len(by_name) < len(paths):
        raise UserError("two of the photos have one name, by which --embeddings keeps them; rename "
                        "one, or leave --embeddings out")
    found = team().everyone(_kept_features(file, about) if team().rank == 0 else None)
    if found:
        names, features, bad = found
        warn(f"read the embeddings of {len(paths)} images from {file}")
        return ([by_name[name] for name in names], features,
                [(by_name[name], reason) for name, reason in bad])
    readable, features, unreadable = image_features(clip, paths, compute)
    about["unreadable"] = [[path.name, reason] for path, reason in unreadable]
    _write_npz(file, filenames=np.array([path.name for path in readable], dtype=np.str_),
               features=features, about=np.array(json.dumps(about)))
    warn(f"wrote {file}")
    return readable, features, unreadable


def _kept_features(file: str | Path, about: dict) -> tuple[list[str], np.ndarray, list] | None:
    """(names, features, [(name, reason)] of unreadable files) of ``file``; None where it holds no
    features, or others than those that ``about`` describes."""
    kept = _read_npz(file)
    of_others = kept is not None and not {"filenames", "features", "about"} <= set(kept)
    if of_others or kept is None and not _may_be_npz(Path(file)):
        raise UserError(f"{file} holds other arrays than embeddings; give --embeddings another "
                        "file name")
    if kept is None:
        return None
    before = json.loads(str(kept["about"]))
    unreadable = before.pop("unreadable")
    return (kept["filenames"].tolist(), kept["features"], unreadable) if before == about else None


# --- texts --------------------------------------------------------------------------------------


def text_features(clip: Clip, texts: Sequence[str]) -> np.ndarray:
    """Features (N, D) float32 of N texts, rows of length 1.

    The same texts are encoded once: features are kept in ``$XDG_CACHE_HOME/hw3``, by default
    ``~/.cache/hw3``, under a name made from the model and the texts.
    """
    texts = list(texts)
    key = hashlib.sha256(json.dumps([clip.identity, texts]).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hw3"
    file = folder / f"text-{key}.npz"
    kept = _read_npz(file) if clip.identity else None
    if kept is not None and "features" in kept and len(kept["features"]) == len(texts):
        clip.token_rows(texts)  # warns about texts that are cut
        return kept["features"]
    features = clip.encode_text(texts).cpu().numpy()
    if clip.identity:
        try:
            _write_npz(file, features=features)
        except (OSError, UserError):
            pass  # without a cache the next run takes longer, its result is the same
    return features


def _read_npz(file: str | Path) -> dict[str, np.ndarray] | None:
    """The file's arrays; None where it does not exist or is damaged (zip keeps a checksum)."""
    try:
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # a damaged file raises many kinds of errors inside numpy's reader
        return None


def _may_be_npz(file: Path) -> bool:
    """Whether nothing is lost where an .npz file that cannot be read is written anew."""
    if not file.is_file():
        return True
    with file.open("rb") as content:
        return content.read(2) in (b"", b"PK")


def _write_npz(file: str | Path, **arrays: np.ndarray) -> None:
    with npz_writer(file, quiet=True) as keep:
        for name, array in arrays.items():
            keep(name, array)
