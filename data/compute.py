"""Where and how a model runs: device, precision, batch size. Needs no torch to import."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from utils import UserError

from data.processes import team


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
    shared: bool = False  # whether the processes of torchrun share the photos between them

    @classmethod
    def from_args(cls, args: argparse.Namespace, batch_sizes: dict[str, int]) -> Compute:
        """What --device, --precision and --batch-size ask for; ``batch_sizes`` has the default
        batch size of each device. Seeds torch by --seed, so that a model with random weights is
        the same in every run, and gives each process of torchrun a GPU of its own."""
        import torch

        torch.manual_seed(args.seed)
        device = resolve_device(args.device)
        if device == "cuda" and team().count > 1:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        return cls(device, resolve_precision(args.precision, device),
                   args.batch_size or batch_sizes[device], shared=True)


def autocast(device: str, precision: str):
    """The context in which a model runs forward at ``precision``."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")
