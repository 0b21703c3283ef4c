"""One file over https: resumed, verified, and whole under its name or not there at all.

``<name>.part`` holds what has come so far and ``<name>.part.json`` where from, with the server's
validator, so that a transfer that broke off goes on, in this run or the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from urllib.parse import urlsplit

from utils import UserError, one_line, progress, warn

from ckpt.content import problem_with_content, sha256_of

WAITS = (1, 2, 4)  # seconds before each further try
TIMEOUT = 30  # seconds that a server may be silent
CHUNK = 1 << 20


class Unreachable(UserError):
    """There is no connection, or none that lasts."""


class _BrokenOff(Exception):
    """A retry may help."""


class _Stale(_BrokenOff):
    """A retry from the beginning may help: what is here belongs to another file."""


def fetch(
    url: str, path: Path, size: int | None = None, sha256: str | None = None,
    insecure: bool = False, source: str = "the list",
) -> tuple[int, str]:
    """Fetch ``url`` to ``path``; returns its size and SHA-256, which are those given, if any.

    ``source`` says where the given ones come from. A file without a given SHA-256 must begin as a
    file of its kind does. Raises Unreachable, or UserError for what a retry cannot fix; ``path`` is
    then as it was before, and what came of the right file is kept for the next call.
    """
    check_url(url, insecure)
    part, note = (path.with_name(path.name + end) for end in (".part", ".part.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    for last in (False, True):
        resumed = _receive(url, part, note, size, sha256, insecure, source)
        found = part.stat().st_size, sha256_of(part)
        wrong = problem_with_content(part, path.suffix)
        if size in (None, found[0]) and (found[1] == sha256 or sha256 is None and not wrong):
            part.replace(path)
            note.unlink(missing_ok=True)
            return found
        _discard(part, note)
        if last or not resumed:  # else its beginning may have been of another file: once more
            break
    if wrong:
        raise UserError(f"what {url} gives {wrong}; it was not kept. Open the address in a browser "
                        "to see what it is")
    raise UserError(f"what {url} gives is not what {source} says: SHA-256 {found[1]} instead of "
                    f"{sha256}, {found[0]} bytes; it was not kept")


@contextlib.contextmanager
def one_at_a_time(lock: Path, what: str) -> Iterator[None]:
    """Hold ``lock``, having waited for whoever does. The system lets go of it when a process dies,
    so none is ever stale."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(lock, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                warn(f"waiting for another process that fetches {what}")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    continue
            except FileNotFoundError:  # the other one has removed it: this holds nothing
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


# --- one request --------------------------------------------------------------------------------


def check_url(url: str, insecure: bool) -> None:
    """UserError for a URL that is not https, or at least http where ``insecure``."""
    try:
        parts = urlsplit(url)
        allowed = parts.hostname and parts.scheme in (("https", "http") if insecure else ("https",))
    except ValueError as error:
        raise UserError(f"{url} is no URL: {error}") from None
    if not allowed:
        hint = "; --insecure fetches it all the same" * (parts.scheme == "http")
        raise UserError(f"{url} is not https and was not fetched{hint}")


def check_space(folder: Path, needed: int, what: str) -> None:
    """UserError where ``folder``'s disk has no space for ``needed`` bytes more."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{what} needs {needed / 1e6:,.1f} MB in {folder}, where "
                        f"{free / 1e6:,.1f} MB are free; free some space")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the first request could have gone."""

    def __init__(self, insecure: bool) -> None:
        self.insecure = insecure

    def redirect_request(self, request, response, code, message, headers, url):
        check_url(url, self.insecure)
        return super().redirect_request(request, response, code, message, headers, url)


def _receive(
    url: str, part: Path, note: Path, size: int | None, sha256: str | None, insecure: bool,
    source: str,
) -> bool:
    """Bring ``part`` to its full length. Returns whether it began with what an earlier request
    gave."""
    opener = urllib.request.build_opener(_Redirects(insecure))
    failures = 0
    while True:
        validator = _validator(note, url)
        # Without a validator only the hash can tell whether both parts are of one file.
        if validator is None or not (validator or sha256):
            _discard(part, note)
        have = part.stat().st_size if part.exists() else 0
        if have and have == size:
            return True
        try:
            with _open(opener, url, have, validator) as response:
                return _read(response, url, part, note, have, size, source)
        except _BrokenOff as error:
            if isinstance(error, _Stale):
                _discard(part, note)
            came = (part.stat().st_size if part.exists() else 0) - have
            failures = 1 if came > CHUNK else failures + 1
            if failures > len(WAITS):
                raise Unreachable(one_line(error)) from None
            sleep(WAITS[failures - 1])


def _open(opener, url: str, have: int, validator: str | None):
    """The response to a request for ``url`` from byte ``have`` on."""
    headers = {"User-Agent": "hw3-download", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = one_line(f"the server answers {error.code} {error.reason}")
        if error.code >= 500 or error.code in (408, 429):
            raise _BrokenOff(answer) from None
        if error.code == 416 and have:
            raise _Stale(answer) from None
        raise UserError(f"{url}: {answer}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"{url} is no URL: {one_line(error)}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: {error.reason.verify_message}: this is not the server that "
                            "it says it is, or this machine's clock or certificates are wrong"
                            ) from None
        if isinstance(error.reason, socket.gaierror):  # no network: waiting does not help
            raise Unreachable(str(error.reason.strerror)) from None
        raise _BrokenOff(getattr(error.reason, "strerror", None) or error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(error) from None


def _read(
    response, url: str, part: Path, note: Path, have: int, size: int | None, source: str
) -> bool:
    """Append what the server sends to ``part``, or begin it anew where it sends all."""
    length = response.headers.get("Content-Length")
    total = int(length) if length and length.isdecimal() else None
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not span or int(span[1]) != have:
            raise _Stale("the server sends another part of the file than it was asked for")
        total = int(span[2]) if span[2] != "*" else total and have + total
    elif response.status == 200:
        have = 0
    else:
        raise UserError(f"{url}: the server answers {response.status} {response.reason}")
    if size is not None and total not in (None, size):
        raise UserError(f"{url} has {total} bytes, {source} says {size}; it was not fetched")
    total = size if total is None else total
    check_space(part.parent, (total or 0) - have, part.stem)
    etag = response.headers.get("ETag", "")
    validator = (etag if etag.startswith('"') else "") or response.headers.get("Last-Modified", "")
    note.write_text(json.dumps({"url": url, "validator": validator}))
    done = have
    with (open(part, "r+b" if have else "wb") as file,
          progress(total, part.stem, "B", done=have) as bar):
        file.seek(have)
        while chunk := _next(response):
            file.write(chunk)
            bar.update(len(chunk))
            done += len(chunk)
            if total is not None and done > total:
                raise UserError(f"{url} sends more than the {total} bytes that it should have")
    if total is not None and done < total:
        raise _BrokenOff(f"the connection broke off after {done} of {total} bytes")
    return have > 0


def _next(response) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(error) from None


# --- what is kept between requests --------------------------------------------------------------


def _validator(note: Path, url: str) -> str | None:
    """What tells that the file at ``url`` is still the one whose beginning was kept: "" where the
    server gave nothing of the kind, None where nothing was kept of this URL."""
    try:
        kept = json.loads(note.read_text())
        return kept["validator"] if kept["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _discard(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)
