"""What every module may use: one-line errors and exit statuses, streams, command lines, and files
that are written whole or not at all. Needs nothing but Python itself to import."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import gc
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

EXIT_ERROR, EXIT_USAGE, EXIT_SOME_UNREADABLE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143
CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "?")  # a file name may hold a terminal's
NO_SPACE = 1 << 16  # bytes; a disk that is full may have a piece of a block left
# Of several processes one writes: data/processes.py mutes the others and says how they end.
muted, at_end = False, lambda status, line: status


class UserError(Exception):
    """A problem that the user can fix. Its text is the one line that they see."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, with which batch systems and torchrun stop a process."""

    status = EXIT_TERMINATED


# --- messages and exit status -----------------------------------------------------------------


def one_line(message: object) -> str:
    """``message`` with its line breaks and runs of spaces made single spaces."""
    return " ".join(str(message).split())


def printable(name: object) -> str:
    """``name`` for a person's eyes: bytes of it that are not UTF-8 become a question mark."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def warn(message: str, everywhere: bool = False) -> None:
    """Print one line on stderr; of several processes only the first does, or all ``everywhere``."""
    if everywhere or not muted:
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print
        write(printable(one_line(message)).translate(CONTROLS), file=sys.stderr)


def _explain(error: BaseException) -> tuple[str, int]:
    """The line that a user sees for ``error``, and the exit status."""
    if isinstance(error, UserError):
        return f"error: {error}", EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        what = "stopped by SIGTERM" if isinstance(error, Terminated) else "interrupted"
        return f"{what}; nothing half-written is left", getattr(error, "status", EXIT_INTERRUPTED)
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
        line, status = _explain(error)
        warn(line, everywhere=True)
        sys.exit(status)
    sys.__excepthook__(kind, error, traceback)


DEBUG = os.environ.get("HW3_DEBUG", "0") not in ("", "0")  # show unforeseen tracebacks
sys.excepthook = _explain_uncaught


def _stop_at_once(*_) -> NoReturn:
    """Ctrl-C while a script starts: some packages' imports would swallow a KeyboardInterrupt."""
    line, status = _explain(KeyboardInterrupt())
    warn(line, everywhere=True)
    os._exit(status)


if (os.path.dirname(os.path.realpath(sys.argv[0])) == os.path.dirname(os.path.realpath(__file__))
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
    signal.signal(signal.SIGINT, _stop_at_once)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit: its status, or one line on stderr and the status that fits."""
    def terminate(*_) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
        raise Terminated
    _prepare_streams()
    gc.set_threshold(50_000, 20, 20)  # imports create much of which almost nothing is ever freed
    line = ""
    try:
        if signal.getsignal(signal.SIGINT) is _stop_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, terminate)
        status = main() or 0
        sys.stdout.flush()
    except SystemExit as end:  # wrong usage, or --help
        status = end.code or 0
    except BrokenPipeError:  # `script | head`: the reader has gone, which is no error of ours
        status = EXIT_ERROR
    except (Exception, KeyboardInterrupt) as error:
        if DEBUG and not isinstance(error, UserError):
            raise
        line, status = _explain(error)
        warn(line, everywhere=True)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again as it ends, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = at_end(status, line)
    gc.freeze()  # else Python looks once more through all that torch has made, for half a second
    (os._exit if status == EXIT_TERMINATED else sys.exit)(status)  # no thread that hangs is awaited


class _Stderr(io.TextIOWrapper):
    """A stderr that may be closed, full, or read by nobody: the work goes on."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _prepare_streams() -> None:
    """Let neither a closed stream nor a character that a stream cannot encode end the work."""
    # Else the next file that is opened would be a closed stream's, and get what libraries print.
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(number)
    if sys.stderr is sys.__stderr__:  # not where a test captures it
        sys.stderr = _Stderr(open(2, "wb", closefd=False), sys.stderr and sys.stderr.encoding,
                             "backslashreplace", line_buffering=True)
    if sys.stdout is None:
        sys.stdout = sys.stderr
        warn("stdout is closed; what belongs there comes here")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


# --- command lines ------------------------------------------------------------------------------


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps a script's docstring as it is written, and shows defaults as they would be typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, list):
            typed = " ".join(action.default).replace("%", "%%")
            return f"{action.help} (default: {typed})"
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose wrong-usage message is one line that names the argument; exit 2."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, ``path`` gets what was written there.

    Missing parent folders are made. A file is replaced by renaming; where that is impossible, at a
    mount point or in a folder that is closed to us, it is overwritten. A device, a pipe or an open
    descriptor (``/dev/stdout``) is written once, at the end.
    """
    path = os.devnull if muted else path
    descriptor, target = open_descriptor(path), Path(os.path.realpath(path))
    beside = descriptor is None and (target.is_file() or not target.exists())
    if beside:
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(target.suffix, ".tmp-", target.parent if beside else None)
    except OSError:
        if not target.exists():
            raise
        beside, (handle, name) = False, tempfile.mkstemp(target.suffix, ".tmp-")
    os.close(handle)
    temporary, kept = Path(name), False
    try:
        try:
            yield temporary
        except Exception as error:
            if problem := _problem_of_space(error, temporary.parent):
                raise UserError(f"cannot write {path}: {problem}; make room there, or choose "
                                "another place") from error
            raise
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        with contextlib.suppress(OSError):
            if beside:
                temporary.replace(target)
                return
        sys.stdout.flush()  # what was printed before stays before
        try:
            with (open(temporary, "rb") as source,
                  open(target if descriptor is None else os.dup(descriptor), "wb") as file):
                shutil.copyfileobj(source, file)
        except BrokenPipeError:  # nobody wants it any more
            raise
        except OSError as error:
            kept = True
            raise UserError(f"cannot write {path}: {error.strerror}; what belongs there is in "
                            f"{temporary}") from None
    finally:
        if not kept:
            temporary.unlink(missing_ok=True)


def _problem_of_space(error: Exception, folder: Path) -> str:
    """"No space left on device" where that ended a file in ``folder``, however a library says so;
    "" for any other error."""
    told = re.search(r"os error (\d+)", str(error))  # safetensors
    number = error.errno if isinstance(error, OSError) else told and int(told[1])
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return os.strerror(number)
    full = not isinstance(error, UserError) and shutil.disk_usage(folder).free < NO_SPACE
    return os.strerror(errno.ENOSPC) if full else ""


def open_descriptor(path: str | Path) -> int | None:
    """The descriptor that ``path`` is a name of, also by a link: 1 for ``/dev/stdout``, 63 for
    what a shell makes of ``>(command)``. None for every other path."""
    place = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        if match := re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", place):
            return int(match[1])
        if not os.path.islink(place):
            return None
        place = os.path.abspath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` whole; file names in it that are not UTF-8 keep their bytes."""
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


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
        twice = max(result, key=[key for key, _ in pairs].count)
        raise ValueError(f"the key {twice} stands twice in one object")
    return result


def read_json(path: str | Path) -> object:
    """The parsed file; a UserError that names it where it is missing or not JSON."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_text(path: str | Path, errors: str = "strict") -> str:
    """A text file in UTF-8, or in UTF-16 where its byte-order mark says so; without that mark."""
    try:
        content = Path(path).read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if utf16 else "utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None


def progress(total: int | None, title: str, unit: str, done: int = 0):
    """A progress bar on stderr; where stderr is a log file, a line now and then."""
    from tqdm import tqdm
    return tqdm(total=total, desc=title, unit=unit, disable=muted, dynamic_ncols=True, initial=done,
                unit_scale=unit == "B", mininterval=0.2 if sys.stderr.isatty() else 20)
