"""Which files a folder or a list names. Needs no torch and no Pillow to import."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils import UserError

from data.files import read_lines
from data.formats import IMAGE_EXTENSIONS, kind_of, readable_extensions
from data.processes import team

STDIN = "-"


class PhotoList(Sequence):
    """Photos as a sequence of paths, each made when it is asked for: a million names take 80 MB, a
    million paths several times as much.

    ``names`` are what results call the photos: the names of the files in ``folder`` or, where that
    is None, paths as a list has them.
    """

    def __init__(self, folder: Path | None, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int | slice) -> Path | PhotoList:
        if isinstance(place, slice):
            return PhotoList(self.folder, self.names[place])
        return self.path_of(self.names[place])

    def __iter__(self) -> Iterator[Path]:
        return map(self.path_of, self.names)

    def path_of(self, name: str) -> Path:
        return Path(name) if self.folder is None else self.folder / name

    def subset(self, places: Sequence[int]) -> PhotoList:
        """The photos at ``places``."""
        return PhotoList(self.folder, [self.names[place] for place in places])


def names_of(paths: Sequence[Path]) -> Sequence[str]:
    """What results call the photos ``paths``."""
    return paths.names if isinstance(paths, PhotoList) else [path.name for path in paths]


def scan(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """(names of the image files that can be read, names of images of other kinds, names of
    subfolders, pipes and devices that may have to do with images), each sorted.

    Hidden files are skipped; links that lead nowhere are files that cannot be read.
    """
    names, left_out, no_files = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            extension = os.path.splitext(entry.name)[1].lower()
            if not _is_file(entry):
                no_files += [entry.name] if _holds_image(entry) else []
            elif extension in readable_extensions():
                names.append(entry.name)
            elif extension in IMAGE_EXTENSIONS or kind_of(entry.path):
                left_out.append(entry.name)
    return sorted(names), sorted(left_out), sorted(no_files)


def _holds_image(entry: os.DirEntry) -> bool:
    """Whether something that is no file is called like an image, or is a folder with images."""
    names = [entry.name]
    with contextlib.suppress(OSError):  # a folder that is closed to us, a pipe
        names += os.listdir(entry.path) if entry.is_dir() else []
    return any(os.path.splitext(name)[1].lower() in readable_extensions() for name in names)


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # links in a circle
        return True


def is_list(word: str | Path) -> bool:
    """Whether ``--images`` names a list of photos, not a folder and not a photo: ``-``, or a file
    whose name ends in .txt."""
    return str(word) == STDIN or (str(word).lower().endswith(".txt") and os.path.isfile(word))


def read_list(word: str | Path) -> PhotoList:
    """The photos of a list, which has one path on each line; ``-`` is stdin, which the first of
    several processes reads. UserError where there is no path in it."""
    if team().rank == 0:
        lines = read_lines("/dev/stdin" if str(word) == STDIN else word, "surrogateescape")
        names = [line for line in lines if line.strip()]
    names = team().everyone(names if team().rank == 0 else None)
    if not names:
        raise UserError(f"no path in the list {word}; it must have one on each line")
    return PhotoList(None, names)


def spread(items: Sequence, count: int | None) -> list:
    """``count`` of ``items`` in their order, spread evenly over them; all of them where ``count``
    is None or too large."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def stem_of(name: str) -> str:
    """``name`` without its last extension."""
    return name.removesuffix(Path(name).suffix)
