"""The table and the figure of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from data.tables import Gap, percent, points, write_table
from metrics import accuracy
from training.sweep_options import Setting

History = list[dict]  # rows of training.loop.fit, one an epoch
NOTE = ("Accuracies are of the epoch in the column \"epoch\", the last one; the best epoch by val "
        "accuracy stands in the last two columns.")
SEEDS_NOTE = (" Each is the mean over the seeds; the spread is the standard deviation of val "
              "accuracy over the seeds, and the best epoch is that of the mean.")


@dataclass(frozen=True)
class Done:
    """A setting whose trainings, one a seed, have begun to end; None for one that diverged."""

    setting: Setting
    histories: Sequence[History | None]

    @property
    def mean(self) -> History | None:
        """The mean history over the seeds; None where one of them diverged."""
        if None in self.histories:
            return None
        return [{key: fmean(row[key] for row in rows) for key in rows[0]}
                for rows in zip(*self.histories, strict=True)]

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds of the last epoch's val accuracy, as of a sample; None
        for fewer than two seeds."""
        if len(self.histories) < 2 or None in self.histories:
            return None
        return stdev(history[-1]["val_accuracy"] for history in self.histories)

    @property
    def diverged(self) -> str:
        """"diverged", or how many of the seeds did; "" for none."""
        count, seeds = self.histories.count(None), len(self.histories)
        return "" if not count else "diverged" if count == seeds else f"{count} of {seeds} diverged"


def write_sweep(done: Sequence[Done], seeds: int, out: Path) -> None:
    """sweep.csv with numbers, sweep.md for readers, and curves.png, of the settings that are done.
    """
    spread = {"spread": points, "seeds": str} if seeds > 1 else {}
    columns = {key: str for row in done for key in row.setting.options} | {
        "train accuracy": percent, "val accuracy": percent, **spread, "95 % interval": percent,
        "against the best": points, "epoch": str, "best val accuracy": percent, "best epoch": str}
    rows = [row.setting.options | values for row, values in zip(done, measured(done), strict=True)]
    write_table(out / "sweep.csv", out / "sweep.md", columns, rows, NOTE + SEEDS_NOTE * (seeds > 1))
    curves = {row.setting.title: row.mean for row in done if row.mean}
    if curves:
        from figures import charts  # the command predict would load matplotlib too

        charts.training_curves(curves, out / "curves.png")


def measured(done: Sequence[Done]) -> list[dict]:
    """The columns of each setting beside its options. A setting is worse than the best where their
    intervals do not overlap."""
    means = [row.mean for row in done]
    compared = accuracy.compare([mean and (mean[-1]["val_correct"], mean[-1]["val_images"])
                                 for mean in means])
    rows = []
    for row, mean, result in zip(done, means, compared, strict=True):
        if mean is None:
            rows.append({"train accuracy": row.diverged})
            continue
        last, best = mean[-1], max(mean, key=lambda epoch: epoch["val_accuracy"])
        rows.append({
            "train accuracy": last["train_accuracy"], "val accuracy": result.share,
            "spread": "" if row.spread is None else row.spread, "seeds": len(row.histories),
            "95 % interval": result.interval,
            "against the best": Gap(result.behind, result.worse), "epoch": int(last["epoch"]),
            "best val accuracy": best["val_accuracy"], "best epoch": int(best["epoch"])})
    return rows
