"""Where and how a model runs: device, precision, batch size. Needs no torch to import."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

from data.processes import team


def resolve_device(name: str) -> str:
    """'auto', 'cpu', 'cuda' or 'mps' -> the device; UserError where it is not there."""
    import torch

    return choose_device(name, torch.cuda.is_available(), torch.backends.mps.is_available())


def choose_device(name: str, has_cuda: bool, has_mps: bool) -> str:
    """As ``resolve_device`` on a machine that has these devices. 'auto' never takes mps, on which
    this project has not been tried."""
    if name == "auto":
        return "cuda" if has_cuda else "cpu"
    if name == "cuda" and not has_cuda:
        raise UserError("--device cuda: no CUDA device is visible; use --device cpu")
    if name == "mps" and not has_mps:
        raise UserError("--device mps: it needs a Mac with Apple's processor and macOS 12.3 or "
                        "newer; use --device cpu")
    return name


def resolve_precision(name: str, device: str) -> str:
    """'auto', 'fp32' or 'bf16' -> 'fp32' or 'bf16'. What computes in float32 on a GPU then does so
    with all its bits, without TF32."""
    import torch

    if device == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "mps":
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        has_bf16 = _cpu_has_bf16()
    precision = choose_precision(name, device, has_bf16)
    if precision == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return precision


def choose_precision(name: str, device: str, has_bf16: bool) -> str:
    """As ``resolve_precision`` on a ``device`` that computes in bfloat16 itself, or not; emulated,
    it is slower than float32. UserError where it cannot compute in it at all."""
    if name == "bf16" and device == "mps" and not has_bf16:
        raise UserError("--precision bf16: on mps it needs macOS 14; use --precision fp32")
    if name == "auto":
        return "bf16" if has_bf16 and device != "mps" else "fp32"
    return name


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})  # x86 AMX, x86 AVX-512, Arm


@dataclass(frozen=True)
class Compute:
    """Where and how a model runs."""

    device: str  # cpu, cuda or mps
    precision: str  # fp32 or bf16
    batch_size: int  # images
    shared: bool = False  # whether the processes of torchrun share the photos between them
    compile: bool = False  # whether the model is compiled for this machine

    @classmethod
    def from_args(cls, args: argparse.Namespace, batch_sizes: dict[str, int]) -> Compute:
        """What --device, --precision, --batch-size and --compile ask for; ``batch_sizes`` has the
        default batch size of each device. Seeds torch by --seed, so that a model with random
        weights is the same in every run, and gives each process of torchrun a GPU of its own."""
        import torch

        torch.manual_seed(args.seed)
        device = resolve_device(args.device)
        if device == "cuda" and team().count > 1:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        return cls(device, resolve_precision(args.precision, device),
                   args.batch_size or batch_sizes[device], shared=True,
                   compile=getattr(args, "compile", False))


def autocast(device: str, precision: str):
    """The context in which a model runs forward at ``precision``."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(batch, device: str):
    """A tensor in the CPU's memory -> the same on ``device``. To CUDA it is copied from pinned
    memory, so that the CPU need not wait for the copy."""
    if device == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)
