"""The pointing game in a report: whether maps peak at the thing, where boxes of it were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from report.inputs import Inputs, Photos
from report.section import Table, Words, percent

NOTE = ("A map peaks inside a box if its highest patch has its centre in a box of the thing; by "
        "chance is the share of all patches of the photo that have.")


def pointing_command(script: str, inputs: Inputs, photos: Photos, checkpoint: str) -> list[Words]:
    """The command that counts how often the maps of ``photos`` peak inside a box, or none."""
    if photos.boxes is None:
        return []
    return [[script, "--images", str(photos.folder), "--boxes", str(photos.boxes), "--checkpoint",
             checkpoint, *inputs.run, *inputs.limit]]


def pointing_table(rows: Sequence[Mapping]) -> Table:
    """A row for each kind of map."""
    return Table(
        ["map", "peaks inside a box", "share", "95 % interval", "by chance"],
        [[row["map"], f"{row['hits']} of {row['maps']}", percent(row["share"]),
          " - ".join(map(percent, row["share_95"])), percent(row["chance"])] for row in rows],
        max(range(len(rows)), key=lambda number: rows[number]["share"]))
