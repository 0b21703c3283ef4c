"""BatchNorm's running statistics (Ioffe & Szegedy 2015), which a training changes without any
gradient."""

from __future__ import annotations

import torch
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def training_mode(model: nn.Module) -> None:
    """Put ``model`` into training mode, but not the norms of frozen parts: those go on using the
    running statistics that their weights were trained with."""
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for norm in part.modules():
                if isinstance(norm, NORMS):
                    norm.eval()


def share_running_statistics(model: nn.Module) -> None:
    """Give every process the statistics of the first. DistributedDataParallel does so before each
    forward pass, so that they differ after the last one of an epoch."""
    for norm in model.modules():
        for statistics in norm.buffers() if isinstance(norm, NORMS) else ():
            torch.distributed.broadcast(statistics, 0)
