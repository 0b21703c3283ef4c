"""A CLIP that judges which of a search's captions fits its photo best (docs/captions.md).

Fang et al. 2015 ("From Captions to Visual Concepts and Back") also rank finished captions again
with the similarity of photo and sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from data.compute import Compute
from models.clip import Clip
from models.forward import Forward

Candidate = tuple[float, list[int]]  # the search's score of a caption, and its token ids


class Judge:
    """``clip``, on ``compute.device``, and its features of photos and captions."""

    def __init__(self, clip: Clip, compute: Compute) -> None:
        self.clip, self.tower = clip, Forward(clip.towers.image_tower(), compute)

    def looks(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) as the CLIP takes them -> its features of them (M, D)."""
        return self.clip.unit(self.tower(images))

    def choose(
        self, looks: Tensor, candidates: Sequence[Sequence[Candidate]],
        texts: Sequence[Sequence[str]], weight: float,
    ) -> list[list[int]]:
        """The tokens of each image's candidate with the highest score + ``weight`` · cosine of the
        photo ``looks`` (M, D) and the caption, which ``texts`` gives in words."""
        told = self.clip.encode_text([text for found in texts for text in found], quiet=True)
        parts = told.split([len(found) for found in texts])
        chosen = []
        for look, part, found in zip(looks, parts, candidates, strict=True):
            sums = [score + weight * fit
                    for (score, _), fit in zip(found, (part @ look).tolist(), strict=True)]
            chosen.append(found[sums.index(max(sums))][1])
        return chosen
