"""One training loop for every model of the project: epochs, SAM's two passes, EMA, resume.

It knows no model and no data set: it is given a dataset, a loss, and functions that evaluate and
save. It is exact: all randomness comes from (seed, epoch, rank), and the whole state is written
after each epoch, so a run that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from utils import UserError, one_line, progress, warn, whole_file

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from data.compute import autocast
from data.files import write_csv
from models.checkpoint import check_weights, digest
from training.batch_norm import share_running_statistics, training_mode
from training.optimizers import lr_factor, make_optimizer
from training.processes import explained_workers, forget_ranks
from training.recipe import (
    Recipe,
    announce,
    check_out,
    check_same,
    deciding_options,
    describe_optimizer,
)


@dataclass
class Task:
    """What the loop is given.

    ``prepare`` turns a collated batch on the device into what ``loss`` takes; it runs once a batch,
    so that both passes of SAM see the same mixed images. A batch is a sequence whose first element
    has one row for each image. ``loss(model, batch)`` returns the mean loss and named numbers, each
    a mean over the batch's images, or a pair of a mean and of how many images it is taken over; the
    history keeps them as ``train_<name>``.
    ``evaluate(model, accelerator)`` returns metrics, the same on every process;
    ``save(path, model, row)`` writes a checkpoint. ``select`` names the metric, higher is better,
    by which the best epoch is kept; without one the last is the best.
    ``what`` says what is learned from, in the line that a training begins with.
    ``settings`` are facts beside the options that a resume must repeat: classes, photos.
    """

    dataset: object
    groups: list[dict]
    prepare: Callable
    loss: Callable
    evaluate: Callable
    save: Callable
    select: str | None
    what: str = ""
    settings: dict = field(default_factory=dict)
    after_epoch: Callable[[list[dict]], None] = lambda history: None


class Diverged(UserError):
    """The loss stopped being finite."""


def fit_recipe(model: nn.Module, task: Task, recipe: Recipe, args) -> list[dict]:
    """``fit`` into ``args.out``, where a resume must repeat every option of ``args``."""
    task.settings = deciding_options(args, recipe) | task.settings
    history = fit(model, task, recipe, Path(args.out), args.resume)
    warn(f"wrote best.safetensors, last.safetensors and history.csv into {args.out}")
    return history


def fit(
    model: nn.Module, task: Task, recipe: Recipe, out: Path, resume: bool = False
) -> list[dict]:
    """Train ``model`` in place and return the history, one row an epoch.

    Writes into ``out``: ``last.pt`` (everything that ``resume`` needs), ``last.safetensors``,
    ``best.safetensors`` and ``history.csv``.
    Raises UserError where ``out`` holds another training, Diverged where the loss stops being
    finite.
    """
    forget_ranks()
    settings = task.settings | {"starting weights": digest(model.state_dict())[:12]}
    state = _starting_state(out, settings, resume)
    if task.what:
        announce(task.what, model, recipe)
    warn(describe_optimizer(recipe))
    out.mkdir(parents=True, exist_ok=True)
    # On a CPU a plain Accelerator() would give every process of torchrun a training of its own.
    accelerator = Accelerator(cpu=recipe.device == "cpu")
    is_main = accelerator.is_main_process
    ema = None
    model.to(accelerator.device)
    if recipe.ema:
        ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True)
    optimizer = make_optimizer(task.groups, recipe)
    sampler = EpochSampler(len(task.dataset), recipe, accelerator.process_index,
                           accelerator.num_processes)
    steps = math.ceil(len(sampler) / recipe.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        getattr(optimizer, "base_optimizer", optimizer), partial(lr_factor, recipe, steps))
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if ema is not None:
        parts["ema"] = ema.module
    for name, part in parts.items():
        if name in state:
            part.load_state_dict(state[name])
    trained = accelerator.prepare(model)
    eval_model = ema.module if ema is not None else model

    history, best = state["history"], state["best"]
    for epoch in range(len(history), recipe.epochs):
        _seed(recipe.seed, epoch, accelerator.process_index)
        sampler.epoch = epoch
        task.dataset.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(
            task.dataset, batch_sampler=sampler, num_workers=recipe.workers)
        started = time.perf_counter()
        row = {"epoch": epoch + 1}
        with explained_workers(recipe.workers):
            row |= _train_epoch(trained, loader, optimizer, schedule, ema, task, recipe,
                                accelerator, f"epoch {epoch + 1}/{recipe.epochs}")
        seconds = time.perf_counter() - started
        if accelerator.num_processes > 1:
            for module in (model, eval_model):
                share_running_statistics(module)
        row |= {"seconds": round(seconds, 2), "images_per_s": round(len(task.dataset) / seconds, 1)}
        eval_model.eval()
        row |= task.evaluate(eval_model, accelerator)
        history.append(row)
        if is_main:
            score = row[task.select] if task.select else epoch
            task.save(out / "last.safetensors", eval_model, row)
            if best is None or score > best:
                best = score
                task.save(out / "best.safetensors", eval_model, row)
            write_csv(out / "history.csv", list(row), [list(row.values()) for row in history])
            _save_state(out / "last.pt", parts, settings, history, best)
            task.after_epoch(history)
            warn("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
        accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        accelerator.end_training()
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    return history


def _train_epoch(
    model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, schedule, ema,
    task: Task, recipe: Recipe, accelerator: Accelerator, title: str,
) -> dict:
    """One pass over the data. Returns the means over all images of what the loss reports."""
    training_mode(model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, float] = {}  # over images: the loss, and what it reports
    counts: dict[str, float] = {}  # how many images are in each sum
    with progress(len(task.dataset), title, "img") as bar:
        for batches in _chunks(loader, recipe.accumulate):
            batches = [task.prepare([part.to(accelerator.device) for part in batch])
                       for batch in batches]

            def backward(batches=batches) -> list[tuple[int, dict[str, float]]]:
                optimizer.zero_grad()
                results = []  # (images, means over them)
                for batch in batches:
                    with autocast(accelerator.device.type, recipe.precision):
                        loss, numbers = task.loss(model, batch)
                    accelerator.backward(loss / len(batches))
                    results.append((len(batch[0]), {"loss": loss.item(), **numbers}))
                if recipe.clip_norm:
                    nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
                return results

            results = backward()
            if recipe.optimizer == "sam":  # climb, take the gradient there, step from where we were
                optimizer.first_step()
                backward()
                optimizer.second_step()
            else:
                optimizer.step()
            lr = max(group["lr"] for group in optimizer.param_groups)
            schedule.step()
            if ema is not None:
                ema.update(accelerator.unwrap_model(model), step=schedule.last_epoch)
            for count, means in results:
                if not math.isfinite(means["loss"]):
                    raise Diverged(f"the loss became {means['loss']} in {title}: lower --lr")
                for name, mean in means.items():
                    mean, over = mean if isinstance(mean, tuple) else (mean, count)
                    sums[name] = sums.get(name, 0.0) + mean * over
                    counts[name] = counts.get(name, 0.0) + over
            shown = "  ".join(f"{name} {total / max(counts[name], 1):.3f}"
                              for name, total in sums.items())
            bar.set_postfix_str(f"{shown}  lr {lr:.1e}", refresh=False)
            bar.update(sum(count for count, _ in results) * accelerator.num_processes)
    both = torch.tensor([[*sums.values()], [*counts.values()]], dtype=torch.float32)
    both = accelerator.reduce(both.to(accelerator.device), "sum").tolist()
    return {"lr": lr, **{f"train_{name}": total / max(count, 1)
                         for name, total, count in zip(sums, *both, strict=True)}}


def _chunks(iterable: Iterable, size: int) -> Iterable[list]:
    rest = iter(iterable)
    while chunk := list(islice(rest, size)):
        yield chunk


# --- randomness ---------------------------------------------------------------------------------


def _seed(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class EpochSampler:
    """Batches of indices in an order that depends on (seed, epoch) alone.

    Every process takes its share of each batch, so that two processes train as one would. A last
    batch that does not divide is filled up from the start of the epoch's order.
    """

    def __init__(self, size: int, recipe: Recipe, rank: int, world: int) -> None:
        self.size, self.seed, self.rank, self.world = size, recipe.seed, rank, world
        self.batch_size = max(recipe.batch_size // recipe.accumulate, world)
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self):
        seeds = np.random.SeedSequence([self.seed, self.epoch])
        order = np.random.default_rng(seeds).permutation(self.size)
        order = np.concatenate([order, np.resize(order, -self.size % self.world)])
        for start in range(0, self.size, self.batch_size):
            yield order[start:start + self.batch_size][self.rank::self.world].tolist()


# --- state --------------------------------------------------------------------------------------


def _starting_state(out: Path, settings: dict, resume: bool) -> dict:
    """What ``last.pt`` holds; an empty history where a new training starts."""
    check_out(out, resume)
    path = out / "last.pt"
    if not path.exists():
        return {"history": [], "best": None}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = state["settings"]
    except Exception as error:  # a damaged file fails in many ways inside torch's reader
        raise UserError(f"cannot resume from {path} (damaged?): {one_line(error)}; give "
                        "another --out") from None
    check_same(before, settings, out)
    for part in ("model", "ema"):
        check_weights(state.get(part, {}), path)
    warn(f"resuming {out} after epoch {len(state['history'])}")
    return state


def _save_state(
    path: Path, parts: dict, settings: dict, history: list[dict], best: float | None
) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"settings": settings, "history": history, "best": best}
    with whole_file(path) as temporary:
        torch.save(state, temporary)
