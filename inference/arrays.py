"""Arrays that a model computed, kept in .npz files. Needs no torch to import."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from utils import printable, warn, whole_file

import numpy as np
from numpy.lib.format import write_array


@contextlib.contextmanager
def npz_writer(
    path: str | Path | None, quiet: bool = False
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yield ``keep(name, array)``, which appends an array to the .npz file at once, so that the
    arrays need not be in memory together.

    The file appears when the block ends without an error, and its path is then printed on stderr
    unless ``quiet``. Where ``path`` is None, nothing is kept.
    """
    if path is None:
        yield lambda name, array: None
        return
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        def keep(name: str, array: np.ndarray) -> None:
            with archive.open(f"{printable(name)}.npy", "w", force_zip64=True) as file:
                write_array(file, np.asanyarray(array), allow_pickle=False)

        yield keep
    if not quiet:
        warn(f"wrote {path}")
