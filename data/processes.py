"""One command in several processes, on one machine or more, as torchrun starts them.

All processes run the same code, but only the first speaks and writes; the others are muted. Where
photos become rows, ``Team.share`` deals out the work: each process takes the next batch when it is
ready for one, so that the shares follow what decoding really costs, and the first process puts the
results into their order. Results travel through the store that torchrun's processes meet at, as
JSON and the bytes of arrays: nothing that comes from the network is run as code.

Needs no torch to import.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import utils
from utils import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_SOME_UNREADABLE,
    EXIT_TERMINATED,
    UserError,
    warn,
)

import numpy as np

PART = 4 << 20  # bytes of one message; the store takes less than 8 MiB
PATIENCE = 600  # seconds in which a process waits for another's results
BEFORE_SPEAKING = 10  # seconds that the first process has to say what went wrong for all
PAUSE = 0.005  # seconds between two looks into the store


class Team:
    """The processes of this command; ``rank`` counts from 0, which is the first process."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self._calls = rank, count, 0

    def share(
        self, count: int, compute: Callable[[Iterator[int]], Iterable[tuple[int, object]]]
    ) -> Iterator[object]:
        """Yield the results of the numbers 0 … count - 1, in this order and in the first process
        only; the others yield nothing, and go on when their part is done.

        ``compute`` takes an iterator of numbers and yields (number, result) for each; it may ask
        for the next numbers early. What it prints and writes is printed and written, whichever
        process runs it. All processes must call this alike.
        """
        if self.count == 1:
            yield from (result for _, result in compute(iter(range(count))))
            return
        name = self._next_name()
        mine = compute(self._take(name, count))
        if self.rank:
            self._send_all(name, mine)
            return
        done, due = {}, 0
        for number, result in mine:
            done[number] = result
            while due < count and (due in done or self._has(f"{name}/{due}")):
                yield done.pop(due) if due in done else self._receive(f"{name}/{due}")
                due += 1
        for number in range(due, count):
            yield done.pop(number) if number in done else self._receive(f"{name}/{number}")

    def everyone(self, value: object) -> object:
        """The first process's ``value`` in every process: numbers, texts, lists, dicts and
        arrays. All processes must call this alike."""
        if self.count == 1:
            return value
        name = self._next_name()
        if self.rank:
            value = self._receive(name, readers=self.count - 1)
        else:
            self._send(name, value)
        return value

    def require_equal(self, texts: Iterable[str], what: str) -> None:
        """UserError where not all processes have the same ``texts``."""
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for text in texts:
            digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        if self.everyone(digest.hexdigest()) != digest.hexdigest():
            raise UserError(f"process {self.rank} sees other {what} than the first one; start "
                            "again when the folder no longer changes, the same on every machine")

    # --- through the store ------------------------------------------------------------------

    @functools.cached_property
    def _store(self):
        from torch.distributed import PrefixStore, rendezvous

        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
        return PrefixStore("hw3", store)

    def _next_name(self) -> str:
        self._calls += 1
        return str(self._calls)

    def _take(self, name: str, count: int) -> Iterator[int]:
        """Numbers that no other process takes; the first of each process is fixed, so that a
        process which starts early leaves work to the others."""
        number = self.rank
        while number < count:
            yield number
            number = self.count + self._store.add(f"{name}/taken", 1) - 1

    def _send_all(self, name: str, results: Iterable[tuple[int, object]]) -> None:
        with _unmuted():
            try:
                for number, result in results:
                    self._send(f"{name}/{number}", result)
            except Exception as error:
                line = str(error) if isinstance(error, UserError) else repr(error)
                self._store.set("failed", f"process {self.rank}: {line}")
                raise

    def _send(self, key: str, value: object) -> None:
        content = pack(value)
        starts = range(0, len(content), PART)
        for part, start in enumerate(starts):
            self._store.set(f"{key}/{part}", content[start:start + PART])
        self._store.set(key, str(len(starts)))  # last, so that all is there where this is

    def _has(self, key: str) -> bool:
        if self.rank == 0 and self._store.check(["failed"]):
            raise UserError(self._store.get("failed").decode("utf-8", "replace"))
        return self._store.check([key])

    def _receive(self, key: str, readers: int = 1) -> object:
        """What was sent under ``key``; the last of ``readers`` removes it from the store."""
        deadline = time.monotonic() + PATIENCE
        while not self._has(key):
            if time.monotonic() > deadline:
                raise UserError(f"another process has sent nothing for {PATIENCE} s; look for its "
                                "message, then start again")
            time.sleep(PAUSE)
        keys = [f"{key}/{part}" for part in range(int(self._store.get(key)))]
        value = unpack(b"".join(self._store.get(part) for part in keys))
        if readers == 1 or self._store.add(f"{key}/readers", 1) == readers:
            for used in (key, *keys):
                self._store.delete_key(used)
        return value


def pack(value: object) -> bytes:
    """``value`` as JSON, and after it the bytes of its arrays."""
    arrays: list[bytes] = []

    def place(array: object) -> dict:
        array = np.ascontiguousarray(array)
        arrays.append(array.tobytes())
        return {"array": len(arrays[-1]), "type": array.dtype.str, "shape": array.shape}

    text = json.dumps(value, default=place).encode()
    return b"%d\n" % len(text) + text + b"".join(arrays)


def unpack(content: bytes) -> object:
    """What ``pack`` was given; tuples have become lists."""
    length, _, rest = content.partition(b"\n")
    text, arrays, start = rest[:int(length)], memoryview(rest)[int(length):], 0

    def array(found: dict) -> object:
        nonlocal start
        if found.keys() != {"array", "type", "shape"}:
            return found
        start += found["array"]
        values = np.frombuffer(arrays[start - found["array"]:start], found["type"])
        return values.reshape(found["shape"]).copy()

    return json.loads(text, object_hook=array)


# --- this process -------------------------------------------------------------------------------


@functools.cache
def team() -> Team:
    """The processes that torchrun started together with this one, or this one alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Team(0, 1)
    return Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def cores() -> int:
    """The processor cores that this process may use, shared with the others on its machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(here // int(os.environ.get("LOCAL_WORLD_SIZE", "1") if team().count > 1 else 1), 1)


@contextlib.contextmanager
def _unmuted() -> Iterator[None]:
    before, utils.muted, stream = utils.muted, False, sys.stderr
    sys.stderr = sys.__stderr__
    try:
        yield
    finally:
        utils.muted, sys.stderr = before, stream


def _muted_end(status: int, line: str) -> int:
    """The exit status of a muted process. What went wrong for all of them is said by the first;
    an error of this process alone is said here, where the first one has not ended all by then."""
    if status in (0, EXIT_SOME_UNREADABLE, EXIT_INTERRUPTED, EXIT_TERMINATED):
        return 0 if status == EXIT_SOME_UNREADABLE else status
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(BEFORE_SPEAKING)
    with _unmuted():
        warn(line or "wrong usage")
    return status or EXIT_ERROR


if team().rank:
    utils.muted, utils.at_end = True, _muted_end
    sys.stdout = sys.stderr = open(os.devnull, "w")
