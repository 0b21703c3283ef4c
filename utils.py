"""What every script needs before torch is imported: one-line errors and exit statuses, command
lines, device and precision, and files that are written whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

EXIT_ERROR, EXIT_USAGE, EXIT_SOME_UNREADABLE, EXIT_INTERRUPTED = 1, 2, 3, 130
SHOWN = 20  # lines of a long result that are printed


class UserError(Exception):
    """A problem that the user can fix. Its text is the one line that they see."""


# --- messages and exit status -----------------------------------------------------------------


def one_line(message: object) -> str:
    """``message`` with its line breaks and runs of spaces made single spaces."""
    return " ".join(str(message).split())


def printable(name: object) -> str:
    """``name`` for a person's eyes: bytes of it that are not UTF-8 become a question mark."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def warn(message: str) -> None:
    """Print one line on stderr."""
    print(printable(one_line(message)), file=sys.stderr, flush=True)


def print_some(lines: Sequence[str], output: str | Path) -> None:
    """Print the first lines, and how many more of them the file ``output`` has."""
    for line in lines[:SHOWN]:
        print(printable(line))
    if len(lines) > SHOWN:
        print(f"… and {len(lines) - SHOWN} more in {printable(output)}")


def _explain(error: BaseException) -> tuple[str, int]:
    """The line that a user sees for ``error``, and the exit status."""
    if isinstance(error, UserError):
        return f"error: {error}", EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing half-written is left", EXIT_INTERRUPTED
    if isinstance(error, ModuleNotFoundError):
        return (f"error: the Python package {error.name} is missing: run `make demo` once, then "
                "`source .venv/bin/activate`; or `pip install -r requirements.txt`"), EXIT_ERROR
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}", EXIT_ERROR
    return (f"error: unexpected {type(error).__name__}: {error} "
            "(HW3_DEBUG=1 shows where; please report it)"), EXIT_ERROR


def _explain_uncaught(kind, error, traceback) -> None:
    """sys.excepthook for what happens before ``run``: a missing package, Ctrl-C while importing."""
    if issubclass(kind, (ModuleNotFoundError, KeyboardInterrupt)) and not DEBUG:
        warn(_explain(error)[0])
    else:
        sys.__excepthook__(kind, error, traceback)
DEBUG = bool(os.environ.get("HW3_DEBUG"))  # show the traceback of an error that nobody foresaw
sys.excepthook = _explain_uncaught


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit: its status, or one line on stderr and the status that fits."""
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # `script | head`: the reader has gone, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_ERROR
    except (Exception, KeyboardInterrupt) as error:
        if DEBUG and not isinstance(error, UserError):
            raise
        line, status = _explain(error)
        warn(line)
    sys.exit(status)


# --- command lines ------------------------------------------------------------------------------


class _HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Keeps a script's docstring as it is written and shows each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # argparse adds a default only where there is help text, and would print "None" and "False".
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose wrong-usage message is one line that names the argument; exit 2."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def _number(kind: type, allowed: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    """argparse type: a number of ``kind`` that is ``allowed``, else an error that says ``rule``."""
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, not {text}")
        return value

    return parse


positive_int = _number(int, lambda value: value >= 1, "a whole number, 1 or more")
natural = _number(int, lambda value: value >= 0, "a whole number, 0 or more")
fraction = _number(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
non_negative = _number(float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")
positive = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
share = _number(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


# --- device, precision, seed --------------------------------------------------------------------


def resolve_device(name: str) -> str:
    """'auto', 'cpu' or 'cuda' -> 'cpu' or 'cuda'."""
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: no CUDA device is visible; use --device cpu")
    return "cuda" if available and name != "cpu" else "cpu"


def resolve_precision(name: str, device: str) -> str:
    """'auto', 'fp32' or 'bf16' -> 'fp32' or 'bf16'."""
    if name != "auto":
        return name
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; emulated, it is slower than float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})  # x86 AMX, x86 AVX-512, Arm


@dataclass(frozen=True)
class Compute:
    """Where and how a model runs."""

    device: str  # cpu or cuda
    precision: str  # fp32 or bf16
    batch_size: int  # images

    @classmethod
    def from_args(cls, args: argparse.Namespace, batch_sizes: dict[str, int]) -> Compute:
        """What the run options say; ``batch_sizes`` has the default batch size of each device."""
        device = resolve_device(args.device)
        return cls(device, resolve_precision(args.precision, device),
                   args.batch_size or batch_sizes[device])


def autocast(device: str, precision: str):
    """The context in which a model runs forward at ``precision``."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block succeeds.

    Missing parent folders are made. A device or a pipe (``/dev/stdout``) is written directly.
    """
    path = Path(path).resolve()  # through a symbolic link onto its target
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Fail now rather than after the work, where ``path`` cannot be written."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file name")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                return
        elif not os.access(path, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from None


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` whole; file names in it that are not UTF-8 keep their bytes."""
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def write_csv(path: str | Path, header: list[str], rows: list[list]) -> None:
    """A CSV with a header line, and its path on stderr."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())
    warn(f"wrote {path}")


def read_csv(path: str | Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV that has ``columns`` in its header; UserError that names what is wrong."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    reader = csv.DictReader(io.StringIO(text))
    if not set(columns) <= set(reader.fieldnames or ()):
        raise UserError(f"{path} needs the header {','.join(columns)}")
    return [{column: (row[column] or "").strip() for column in columns} for row in reader]


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def write_json(result: object, output: str | Path | None = None) -> None:
    """One JSON object to ``output``, or to stdout."""
    text = json.dumps(result, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)
        warn(f"wrote {output}")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """Python's parser would silently keep the last of two equal keys."""
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice} stands twice in one object")
    return result


def read_json(path: str | Path) -> object:
    """The parsed file; a UserError that names it where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"),
                          object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, with or without a byte-order mark."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None


def progress(total: int | None, title: str, unit: str, hidden: bool = False, done: int = 0):
    """A progress bar on stderr; where stderr is a log file, a line now and then."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, disable=hidden, dynamic_ncols=True,
                initial=done, unit_scale=unit == "B",
                mininterval=0.2 if sys.stderr.isatty() else 20)
