"""Predictions for a folder or a list of photos, of which there may be a million.

The row of each photo goes, as soon as it is known, into a file beside the output, ``OUTPUT.part``,
so that no list of rows is in memory, and so that a prediction that was stopped goes on from there.
The output itself is written at the end, whole or not at all, and the other file is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils import UserError, open_descriptor, warn

import numpy as np

from data.batches import Unreadable, photo_rows
from data.compute import Compute
from data.files import file_stamp, identities
from data.folders import PhotoList, is_list
from data.photos import report_unreadable
from data.processes import team
from data.transform import Annotated, Transform, Transforms

# Options that decide where rows go and how fast, but not what is in them.
LEFT_OUT = ("images", "output", "limit", "resume", "run", "command", "batch_size", "device",
            "precision", "compile")
KIND = "predictions of this project"  # what the first line of the file of rows says


@dataclass
class Predicted:
    """The rows of the readable photos, and the other files."""

    rows: Callable[[], Iterable[tuple[str, object]]]  # (name, row) in order, at every call
    count: int
    unreadable: Unreadable = field(default_factory=list)


@contextlib.contextmanager
def predictions(
    args: argparse.Namespace, photos: PhotoList, transform: Transform | Transforms,
    work: Callable[[object], list], compute: Compute, title: str,
) -> Iterator[Predicted]:
    """Yield the rows of ``photos``, from which the block writes ``args.output``; the rows that
    ``work`` makes, as in ``photo_rows``, consist of numbers, texts and lists.

    With ``args.resume``, rows that an earlier run left are kept where their files are unchanged.
    Names each unreadable file on stderr. Raises UserError where there is no readable one, and where
    a run with other options left the rows. Of several processes, all but the first end here.
    """
    def stamped(images: tuple) -> list[list]:
        stamps, images = images
        return [[*stamp, row] for stamp, row in zip(stamps, work(images), strict=True)]

    processes = team()
    with _Rows(args, photos, compute) if processes.rank == 0 else contextlib.nullcontext() as kept:
        places = processes.everyone(kept and np.array(kept.missing(), np.int64))
        missing = photos if len(places) == len(photos) else photos.subset(places.tolist())
        unreadable = []
        for done, rows, bad in photo_rows(
                Annotated(transform, file_stamp), missing, compute, stamped, title):
            kept.add([missing.names[place] for place in done], rows)
            unreadable += [(missing[place], reason) for place, reason in bad.items()]
        if kept is None:
            raise SystemExit(0)
        report_unreadable(range(len(photos) - len(unreadable)), unreadable)
        yield Predicted(kept.in_order, len(photos) - len(unreadable), unreadable)


def label_rows(probabilities: np.ndarray, labels: Sequence[str]) -> list[list]:
    """[the most probable label, its probability] of each row of (N, classes)."""
    return [[labels[row.argmax()], float(row.max())] for row in probabilities]


class _Rows:
    """The file of rows beside an output: its first line says what the rows follow from, each
    further one has a photo's name, size and time of change, and its row."""

    def __init__(self, args: argparse.Namespace, photos: PhotoList, compute: Compute) -> None:
        self.photos, self.settings = photos, _settings(args, compute)
        self.places: dict[str, int] | None = None  # name: where its line begins; after a resume
        self.count = 0
        target = Path(os.path.realpath(args.output))
        if is_list(args.images) and {*identities(target)} & {*identities(Path(args.images))}:
            raise UserError(f"--output {args.output} would replace the list --images; give another")
        self.path = target.with_name(target.name + ".part")
        if open_descriptor(args.output) is not None or (target.exists() and not target.is_file()):
            if args.resume:
                raise UserError(f"--resume needs a file as --output, which {args.output} is not")
            self.path = None
        self._open(args.resume)

    def _open(self, resume: bool) -> None:
        """Find the rows that an earlier run left. Where there are none, the file is made with the
        first row, so that an error before it leaves nothing behind."""
        self.file = None
        if self.path is None or not self.path.exists():
            if resume:
                warn(f"no rows are left in {self.path}: all photos are computed")
            return
        self.file = self._locked()
        first = self._parsed(self.file.readline())
        if not isinstance(first, dict) or first.get("kind") != KIND:
            raise UserError(f"{self.path} is in the way of the rows of this prediction; move it")
        if resume:
            self._check_same(first["settings"])
            self._find_kept()
        else:
            warn(f"{self.path} has rows of a run that was stopped: they are computed anew; "
                 "--resume keeps them")
            self.file.truncate(0)
            self._begin()

    def _locked(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing {self.path}; wait for it, or give another "
                            "--output") from None
        except OSError:
            pass  # a file system without locks
        file.seek(0)
        return file

    def _begin(self) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile() if self.path is None else self._locked()
        self.file.seek(0)
        self._append({"kind": KIND, "settings": self.settings})

    def _check_same(self, before: dict) -> None:
        for key in {**self.settings, **before}:
            if before.get(key) != self.settings.get(key):
                raise UserError(f"cannot resume: the rows in {self.path} were made with another "
                                f"--{key.replace('_', '-')}; give the same, or leave --resume out "
                                "to start anew")

    def _find_kept(self) -> None:
        """Keep the rows of unchanged files; a line that was cut off is cut away."""
        self.places, end = {}, self.file.tell()
        for line in self.file:
            row = self._parsed(line)
            if row is None:
                break
            name, size, changed, _ = row
            if file_stamp(self.photos.path_of(name)) == (size, changed):
                self.places[name] = end
            end += len(line)
        self.file.truncate(end)
        self.file.seek(end)
        warn(f"{len(self.missing())} of {len(self.photos)} photos are left to do")

    @staticmethod
    def _parsed(line: bytes) -> object:
        try:
            return json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return None

    def missing(self) -> Sequence[int]:
        """The places of the photos that have no row yet."""
        if self.places is None:
            return range(len(self.photos))
        return [place for place, name in enumerate(self.photos.names) if name not in self.places]

    def add(self, names: Sequence[str], rows: Sequence[list]) -> None:
        """Append the rows of a batch; they are in the file when this returns."""
        if self.file is None:
            self._begin()
        try:
            for name, row in zip(names, rows, strict=True):
                if self.places is not None:
                    self.places[name] = self.file.tell()
                self._append([name, *row])
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path or tempfile.gettempdir()}: {error.strerror}; "
                            "make room there, or choose another place") from None
        self.count += len(names)

    def _append(self, line: object) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")

    def in_order(self) -> Iterator[tuple[str, object]]:
        """(name, row) of each photo that has one, in the order of the photos."""
        with open(self.file.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            if self.places is None:
                file.readline()
                for line in file:
                    name, _, _, row = json.loads(line)
                    yield name, row
                return
            for name in self.photos.names:
                if name in self.places:
                    file.seek(self.places[name])
                    yield name, json.loads(file.readline())[3]

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Remove the file of rows where the output was written, or where there is no row in it."""
        if self.file is None:
            return
        done = kind is None or not (self.count or self.places)
        if self.path is not None and done:
            self.path.unlink(missing_ok=True)
        elif self.path is not None:
            warn(f"the rows that are done are kept in {self.path}: the same command with --resume "
                 "goes on from there")
        with contextlib.suppress(OSError):
            self.file.close()


def _settings(args: argparse.Namespace, compute: Compute) -> dict:
    """What rows follow from: the options, with the sizes and times of the files that they name."""
    options = {key: _content(value) for key, value in vars(args).items() if key not in LEFT_OUT}
    return json.loads(json.dumps(options | {"device": compute.device,
                                            "precision": compute.precision}))


def _content(value: object) -> object:
    """An option's value; for a file or folder, its name and what tells that it has changed."""
    if isinstance(value, list):
        return [_content(word) for word in value]
    if not isinstance(value, (str, Path)) or not os.path.exists(value):
        return value
    files = sorted(Path(value).iterdir()) if os.path.isdir(value) else [Path(value)]
    return [Path(value).name, *([file.name, *file_stamp(file)] for file in files)]
