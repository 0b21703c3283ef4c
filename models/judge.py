"""A CLIP that judges which of a search's captions fits its photo best (docs/captions.md).

Fang et al. 2015 ("From Captions to Visual Concepts and Back") also rank finished captions again
with the similarity of photo and sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils import UserError

import torch
from torch import Tensor

from data.compute import Compute
from data.transform import Transform
from models.clip import Clip
from models.forward import Forward

Candidate = tuple[float, list[int]]  # the search's score of a caption, and its token ids


@dataclass
class Judge:
    """``clip`` on ``compute.device``, for photos that a captioner prepares with ``transform``."""

    clip: Clip
    transform: Transform
    compute: Compute

    def __post_init__(self) -> None:
        if self.transform.resize == "longest":
            raise UserError("--rerank needs a captioner whose photos are all of one size, and this "
                            "one keeps their shape; give --rerank 0")
        self.tower = Forward(self.clip.towers.image_tower(), self.compute)

    def looks(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) as the captioner takes them -> CLIP's features of them (M, D)."""
        return self.clip.unit(self.tower(self.transform.view_for(self.clip.transform, images)))

    def choose(
        self, looks: Tensor, candidates: Sequence[Sequence[Candidate]],
        texts: Sequence[Sequence[str]], weight: float,
    ) -> list[list[int]]:
        """The tokens of each image's candidate with the highest score + ``weight`` · cosine of the
        photo ``looks`` (M, D) and the caption, which ``texts`` gives in words."""
        counts = torch.tensor([len(found) for found in candidates], device=looks.device)
        told = self.clip.encode_text([text for found in texts for text in found], quiet=True)
        fits = iter((looks.repeat_interleave(counts, 0) * told).sum(1).tolist())
        judged = [[(score + weight * next(fits), tokens) for score, tokens in found]
                  for found in candidates]
        return [max(found, key=lambda candidate: candidate[0])[1] for found in judged]
