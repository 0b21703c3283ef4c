"""What CLIP makes of photos and texts, for every script that asks it. Between the scripts, which
never import each other, and the rooms: it may use every room."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from utils import Compute, UserError, autocast, check_writable, warn

import numpy as np

from data.batches import normalized_batches
from inference.arrays import npz_writer
from models.clip import Clip

Unreadable = list[tuple[Path, str]]


# --- photos -------------------------------------------------------------------------------------


def image_features(
    clip: Clip, paths: Sequence[Path], compute: Compute, title: str = "encode"
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """(readable paths, (N, D) float32 with rows of length 1, [(path, reason)] of the others)."""
    readable, rows, unreadable = [], [], []
    for names, images in normalized_batches(clip.transform, paths, compute, unreadable, title):
        with autocast(compute.device, compute.precision):
            rows.append(clip.encode_image(images).cpu().numpy())
        readable += names
    return readable, np.concatenate(rows) if rows else np.zeros((0, 0), np.float32), unreadable


def kept_image_features(
    clip: Clip, paths: Sequence[Path], compute: Compute, file: str | Path | None
) -> tuple[list[Path], np.ndarray, Unreadable]:
    """As ``image_features``, from ``file`` where it holds those of this model and of these files
    (by name, size and time); else computed, and written there. None: never kept.

    The file's arrays are ``filenames`` and ``features``, row by row, and ``about`` (JSON).
    """
    if file is None:
        return image_features(clip, paths, compute)
    if Path(file).suffix != ".npz":
        raise UserError(f"--embeddings {file}: the name must end in .npz")
    check_writable(file)
    stats = [path.stat() for path in paths]
    about = {"model": clip.identity, "precision": compute.precision,
             "files": [[path.name, stat.st_size, stat.st_mtime_ns]
                       for path, stat in zip(paths, stats, strict=True)]}
    by_name = {path.name: path for path in paths}
    kept = _read_npz(file)
    if kept is not None and not {"filenames", "features", "about"} <= set(kept):
        raise UserError(f"{file} holds other arrays than embeddings; give --embeddings another "
                        "name")
    if kept is not None:
        before = json.loads(str(kept["about"]))
        unreadable = before.pop("unreadable")
        if before == about:
            warn(f"took the embeddings of {len(paths)} images from {file}")
            return ([by_name[name] for name in kept["filenames"].tolist()], kept["features"],
                    [(by_name[name], reason) for name, reason in unreadable])
    readable, features, unreadable = image_features(clip, paths, compute)
    about["unreadable"] = [[path.name, reason] for path, reason in unreadable]
    _write_npz(file, filenames=np.array([path.name for path in readable], dtype=np.str_),
               features=features, about=np.array(json.dumps(about)))
    warn(f"wrote {file}")
    return readable, features, unreadable


# --- texts --------------------------------------------------------------------------------------


def text_features(clip: Clip, texts: Sequence[str]) -> np.ndarray:
    """(N, D) float32 with rows of length 1; those of texts encoded before come from the cache,
    ``$XDG_CACHE_HOME/hw3`` or ``~/.cache/hw3``."""
    texts = list(texts)
    key = hashlib.sha256(json.dumps([clip.identity, texts]).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hw3"
    file = folder / f"text-{key}.npz"
    kept = _read_npz(file) if clip.identity else None
    if kept is not None and "features" in kept and len(kept["features"]) == len(texts):
        clip.token_rows(texts)  # for its warning about texts that were cut
        return kept["features"]
    features = clip.encode_text(texts).cpu().numpy()
    if clip.identity:
        try:
            _write_npz(file, features=features)
        except OSError:
            pass  # a cache that cannot be written costs time, no result
    return features


def _read_npz(file: str | Path) -> dict[str, np.ndarray] | None:
    """The file's arrays; None where there is none, or it is damaged (zip keeps a checksum)."""
    try:
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # a damaged file fails in many ways inside numpy's reader
        return None


def _write_npz(file: str | Path, **arrays: np.ndarray) -> None:
    with npz_writer(file, quiet=True) as keep:
        for name, array in arrays.items():
            keep(name, array)
