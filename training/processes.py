"""The processes of a training: those that torchrun starts, and those that read photos.

Needs no torch to import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from utils import UserError, one_line

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # as torchrun sets them


def forget_ranks() -> None:
    """Remove the ranks from the environment of a process that torchrun did not start: accelerate
    would wait for other processes, or fail. UserError where there should be several."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    count = os.environ.get("WORLD_SIZE", "")
    if count not in ("", "1"):
        raise UserError(f"WORLD_SIZE={count} is set, but torchrun did not start this process: "
                        f"unset {' '.join(RANKS)}, or start it with torchrun --nproc_per_node N")
    for name in RANKS:
        os.environ.pop(name, None)


@contextlib.contextmanager
def explained_workers(count: int) -> Iterator[None]:
    """UserError, with what helps, where one of ``count`` processes that read photos is killed, or
    finds no shared memory for its batch."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        signs = ("DataLoader worker (pid", "shared memory", "</torch_", "ancdata")
        if count and any(sign in str(error) for sign in signs):
            raise UserError(f"a process that reads photos failed: {one_line(error)[-150:]}; give "
                            "--workers 0, or the container more shared memory (docker run "
                            "--shm-size 2g)") from None
        raise
