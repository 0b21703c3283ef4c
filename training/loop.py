"""One training loop for every model of the house: epochs, optimizers, schedules, EMA, resume.

It knows no model and no data set. It is handed a dataset, a loss, and functions that evaluate and
save, and it is exact: all randomness comes from (seed, epoch, rank), the whole state is written
after each epoch, so a run that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from utils import UserError, autocast, one_line, progress, warn, whole_file, write_csv

import numpy as np
import torch
from accelerate import Accelerator
from pytorch_optimizer import SAM
from timm.utils import ModelEmaV3
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """What decides how a model is trained, apart from the model, the data and the loss."""

    epochs: int = 10
    batch_size: int = 32  # images in an optimizer step, over all processes and micro-batches
    accumulate: int = 1  # micro-batches that such a step is computed in
    optimizer: str = "adamw"
    sam_base: str = "sgd"
    sam_rho: float = 0.05
    momentum: float = 0.9
    lr: float = 1e-4
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 1.0  # epochs
    clip_norm: float = 1.0  # 0: no clipping
    ema: float = 0.0  # decay a step; 0: none
    seed: int = 0
    workers: int = 2
    device: str = "cpu"
    precision: str = "fp32"


@dataclass
class Task:
    """What the loop is handed.

    ``prepare`` turns a collated batch on the device into what ``loss`` takes; it runs once a batch,
    so that both passes of SAM see the same mixed images. ``loss(model, batch)`` returns the mean
    loss and the number of correct predictions. ``evaluate(model, accelerator)`` returns metrics,
    the same on every process; ``save(path, model, row)`` writes a checkpoint. ``select`` names the
    metric, higher is better, by which the best epoch is kept; without one the last is the best.
    """

    dataset: object
    groups: list[dict]
    prepare: Callable
    loss: Callable
    evaluate: Callable
    save: Callable
    select: str | None
    after_epoch: Callable[[list[dict]], None] = lambda history: None
    settings: dict = field(default_factory=dict)  # beside the recipe, what a resume must repeat


def fit(
    model: nn.Module, task: Task, recipe: Recipe, out: Path, resume: bool = False
) -> list[dict]:
    """Train ``model`` in place and return the history, one row an epoch.

    Writes into ``out``: ``last.pt`` (everything that ``resume`` needs), ``last.safetensors``,
    ``best.safetensors`` and ``history.csv``.
    Raises UserError where the loss stops being finite or ``out`` holds another training.
    """
    settings = asdict(recipe) | task.settings | {"images": len(task.dataset)}
    state = _starting_state(out, settings, resume)
    out.mkdir(parents=True, exist_ok=True)
    # On a CPU a plain Accelerator() would give every process of torchrun a training of its own.
    accelerator = Accelerator(cpu=recipe.device == "cpu")
    chief = accelerator.is_main_process
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
    judged = ema.module if ema is not None else model

    history, best = state["history"], state["best"]
    for epoch in range(len(history), recipe.epochs):
        _seed(recipe.seed, epoch, accelerator.process_index)
        sampler.epoch = epoch
        task.dataset.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(
            task.dataset, batch_sampler=sampler, num_workers=recipe.workers)
        started = time.perf_counter()
        row = {"epoch": epoch + 1}
        row |= _train_epoch(trained, loader, optimizer, schedule, ema, task, recipe, accelerator,
                            f"epoch {epoch + 1}/{recipe.epochs}")
        seconds = time.perf_counter() - started
        row |= {"seconds": round(seconds, 2), "images_per_s": round(len(task.dataset) / seconds, 1)}
        judged.eval()
        row |= task.evaluate(judged, accelerator)
        history.append(row)
        if chief:
            score = row[task.select] if task.select else epoch
            task.save(out / "last.safetensors", judged, row)
            if best is None or score > best:
                best = score
                task.save(out / "best.safetensors", judged, row)
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
    """One pass over the data. Returns the mean training loss and accuracy of this process."""
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.zeros(3)  # loss, correct, images
    with progress(total=len(task.dataset), title=title, unit="img",
                  hidden=not accelerator.is_main_process) as bar:
        for batches in _chunks(loader, recipe.accumulate):
            batches = [task.prepare([part.to(accelerator.device) for part in batch])
                       for batch in batches]

            def backward(batches=batches) -> list[tuple[float, int, int]]:
                optimizer.zero_grad()
                results = []
                for batch in batches:
                    with autocast(accelerator.device.type, recipe.precision):
                        loss, correct = task.loss(model, batch)
                    accelerator.backward(loss / len(batches))
                    results.append((loss.item(), correct, len(batch[0])))
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
            for loss, correct, images in results:
                if not math.isfinite(loss):
                    raise UserError(f"the loss became {loss} in {title}: lower --lr")
                total += torch.tensor([loss * images, correct, images])
            done = total[2].item()
            bar.set_postfix_str(f"loss {total[0] / done:.3f} acc {total[1] / done:.3f} "
                                f"lr {lr:.1e}", refresh=False)
            bar.update(sum(images for _, _, images in results) * accelerator.num_processes)
    total = accelerator.reduce(total.to(accelerator.device), "sum")
    return {"lr": lr, "train_loss": (total[0] / total[2]).item(),
            "train_accuracy": (total[1] / total[2]).item()}


def _chunks(iterable: Iterable, size: int) -> Iterable[list]:
    chunk = []
    for item in iterable:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# --- optimizer and schedule ---------------------------------------------------------------------


def make_optimizer(groups: list[dict], recipe: Recipe) -> torch.optim.Optimizer:
    """Adam, AdamW, SGD, or SAM (Foret et al. 2021) over one of them.

    ``groups`` are parameter groups; ``lr_scale`` in one multiplies the recipe's learning rate.
    """
    groups = [{**group, "lr": recipe.lr * group.get("lr_scale", 1.0)} for group in groups]
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    base = recipe.sam_base if recipe.optimizer == "sam" else recipe.optimizer
    options = {"lr": recipe.lr} | ({"momentum": recipe.momentum} if base == "sgd" else {})
    if recipe.optimizer == "sam":
        return SAM(groups, classes[base], rho=recipe.sam_rho, **options)
    return classes[base](groups, **options)
EMBEDDINGS = ("wte", "wpe", "prefix", "pos_embed", "cls_token", "logit_scale", "_embeddings.")


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: dict[str, float] | None = None
) -> list[dict]:
    """Trained parameters by whether they decay and by learning rate: ``lr_scales`` says how that of
    names with a prefix is scaled. Norms, biases and embeddings do not decay."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            embedding = any(part in name for part in EMBEDDINGS)
            decay = 0.0 if embedding or parameter.ndim < 2 else weight_decay
            scale = next((scale for prefix, scale in (lr_scales or {}).items()
                          if name.startswith(prefix)), 1.0)
            groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in groups.items()]


def lr_factor(recipe: Recipe, steps_an_epoch: int, step: int) -> float:
    """What the learning rate is multiplied by at optimizer step ``step`` (from 0): a linear
    warm-up, then constant, or a cosine or a line down to 0 at the end of the last epoch."""
    warmup, total = recipe.warmup * steps_an_epoch, recipe.epochs * steps_an_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
        recipe.schedule]


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


def check_out(out: str | Path, resume: bool) -> None:
    """UserError where ``out`` holds a training that is not to be resumed."""
    if (Path(out) / "last.pt").exists() and not resume:
        raise UserError(f"{out} holds a training already: give --resume to continue it, "
                        "or another --out")


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
        raise UserError(f"cannot resume from {path}: {one_line(error)}") from None
    for key, value in settings.items():
        if before.get(key) != value and key != "workers":
            raise UserError(f"cannot resume {out}: it was trained with {key} "
                            f"{before.get(key)}, not {value}")
    warn(f"resuming {out} after epoch {len(state['history'])}")
    return state


def _save_state(
    path: Path, parts: dict, settings: dict, history: list[dict], best: float | None
) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"settings": settings, "history": history, "best": best}
    with whole_file(path) as temporary:
        torch.save(state, temporary)


# --- recipes ------------------------------------------------------------------------------------

FILES = ("images", "captions", "val_captions", "checkpoint", "base", "decoder", "weights",
         "vocab")


def describe_training(args, trained_on: dict) -> dict:
    """What a checkpoint keeps of how it was trained: of each path, its name alone."""
    def bare(value):
        return [bare(word) for word in value] if isinstance(value, list) else Path(value).name

    recipe = {key: bare(value) if key in FILES and value else value
              for key, value in vars(args).items()
              if key not in ("run", "command", "out", "val_images", "features", "resume", "about")}
    return {"recipe": recipe, "trained_on": trained_on, "about": args.about}


def fit_recipe(model: nn.Module, task: Task, settings: dict, args) -> list[dict]:
    """``training.fit`` by the options of a command line; ``settings`` are what a resume must
    repeat."""
    recipe = Recipe(**{field.name: getattr(args, field.name)
                                for field in dataclasses.fields(Recipe)})
    task.settings = {key: value for key, value in settings.items() if not hasattr(recipe, key)}
    history = fit(model, task, recipe, Path(args.out), args.resume)
    warn(f"wrote best.safetensors, last.safetensors and history.csv into {args.out}")
    return history
