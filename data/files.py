"""Files that a command reads and writes: outputs that are refused before any work, and tables.

Needs no torch to import.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from utils import CONTROLS, UserError, open_descriptor, printable, read_text, warn, whole_file

SHOWN = 20  # lines of a long result that are printed

# What options name: {"--labels": "labels.csv", "--images": [path, …], "--truth": None}
Named = Mapping[str, "str | Path | Iterable[str | Path] | None"]

# --- before the work ----------------------------------------------------------------------------


def check_outputs(outputs: Named, inputs: Named) -> None:
    """UserError, before any work, where an output cannot be written, or is a file that another
    option names too, by the same name or through a link.

    A folder among ``inputs`` stands for the files in it. Of a folder of photos give the photos, so
    that results may be written beside them.
    """
    taken: dict[object, tuple[str, Path]] = {}  # identity of an output: its option, its path
    for option, value in outputs.items():
        if isinstance(value, str) and (not value or value.endswith("/")):  # Path drops the slash
            raise UserError(f'"{value}" is no name of a file; give a file as {option}')
    for option, path in _each(outputs):
        check_writable(path, option)
        for identity in identities(path):
            # Several results may go to one pipe, or where stdout goes.
            if identity in taken and open_descriptor(path) is None:
                raise UserError(_replaces(option, path, taken[identity][0]))
            taken[identity] = option, path
    for option, path in list(taken.values()):
        for folder in Path(os.path.realpath(path)).parents:
            if str(folder) in taken:
                other, file = taken[str(folder)]
                raise UserError(f"{other} {file} would be the folder of {option} {path}, too; give "
                                f"another {other}")
    for option, path in _each(inputs):  # of which there may be a million
        for identity in identities(path):
            if identity in taken:
                raise UserError(_replaces(*taken[identity], option))


def _replaces(option: str, path: Path, other: str) -> str:
    return f"{option} {path} would replace a file that {other} names; give another {option}"


def check_writable(path: str | Path, option: str = "place") -> None:
    """UserError where ``path``, which ``option`` names, cannot be written; leaves nothing there."""
    descriptor = open_descriptor(path)
    try:
        if descriptor is not None:
            os.write(descriptor, b"")  # fails where it is closed, or open for reading alone
        elif os.path.isdir(path):
            raise UserError(f"{path} is a folder; give a file as {option}")
        elif os.path.exists(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "Permission denied")
        else:
            if any(len(os.fsencode(part)) > 255 for part in Path(path).parts):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)  # fails for links in a circle
            folder = Path(os.path.realpath(path)).parent
            while not folder.exists():  # it will be made
                folder = folder.parent
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another {option}") from None


def _each(named: Named) -> Iterator[tuple[str, Path]]:
    """(option, path) of every path."""
    for option, value in named.items():
        for path in [value] if isinstance(value, (str, Path)) else value or ():
            if path != "":  # which Path takes for the current folder
                yield option, Path(path)


def identities(path: Path) -> list:
    """What all names of one file have in common, be they links; of a folder, those of its files.
    Devices and pipes have none."""
    try:
        status = os.stat(path)
    except OSError:
        return [os.path.realpath(path)]
    if stat.S_ISDIR(status.st_mode):
        return [identity for file in path.iterdir() if file.is_file()
                for identity in identities(file)]
    return [(status.st_dev, status.st_ino)] if stat.S_ISREG(status.st_mode) else []


def file_stamp(path: Path) -> tuple[int, int]:
    """(size, time of the last change in nanoseconds) of a file, which tell that it has changed;
    (0, 0) for a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


# --- several files ------------------------------------------------------------------------------


def refuse_equal_files(paths: Sequence[str | Path]) -> None:
    """UserError where two of ``paths`` are one file, by the same name or through a link."""
    seen: dict[object, str | Path] = {}
    for path in paths:
        for identity in identities(Path(path)):
            if identity in seen:
                raise UserError(f"{seen[identity]} and {path} are one file; compare files that "
                                "differ")
            seen[identity] = path


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """What figures and tables call several files: their names without extension, after as many
    folders as tell them apart; the whole paths where these alone do so."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


# --- text and tables ----------------------------------------------------------------------------


def read_lines(path: str | Path, errors: str = "strict") -> list[str]:
    """The lines of a text file, whatever system's line ends it has."""
    return [line.rstrip("\n") for line in io.StringIO(read_text(path, errors), newline=None)]


def read_csv(path: str | Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV that has ``columns`` in its header, in any case; between values stand
    commas, semicolons or tabs, as table programs of many languages write them. UserError that names
    what is wrong."""
    text = read_text(path, "surrogateescape")  # file names that are not UTF-8 keep their bytes
    try:
        for delimiter in (",", ";", "\t"):
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            reader.fieldnames = [name.strip().casefold() for name in reader.fieldnames or ()]
            if all(reader.fieldnames.count(column.casefold()) == 1 for column in columns):
                return [{column: (row[column.casefold()] or "").strip() for column in columns}
                        for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    raise UserError(f"{path} needs the header {','.join(columns)}, each of them once")


def read_table(path: str | Path) -> list[list[str]]:
    """All rows of a CSV whatever its columns are, the header first; UserError where it has none."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, "surrogateescape"), newline="")))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty; a CSV with a header is needed")
    return rows


def read_mapping(path: str | Path, key: str, value: str) -> dict[str, str]:
    """{key: value} of the rows of a CSV; UserError where one key has two values."""
    found: dict[str, str] = {}
    for row in read_csv(path, key, value):
        first = found.setdefault(row[key], row[value])
        if first != row[value]:
            raise UserError(f"{path} gives {row[key]} twice, with {value} {first} and with {value} "
                            f"{row[value]}; keep the right one")
    return found


def write_csv(path: str | Path, header: list[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV with a header line, row by row, and say its path on stderr."""
    with whole_file(path) as temporary:
        # File names that are not UTF-8 keep their bytes.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    warn(f"wrote {path}")


def print_some(lines: Iterable[str], count: int, output: str | Path) -> None:
    """Print the first of ``count`` lines, and how many more of them the file ``output`` has."""
    for line in islice(lines, SHOWN):
        print(printable(line).translate(CONTROLS))
    if count > SHOWN:
        print(f"… and {count - SHOWN} more in {printable(output)}")


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
