"""Greedy search, sampling and beam search over any captioner (see ``models.captioner``).

Batched over images and beams, one cached step a token. An image whose caption is done leaves the
batch, so a long caption among short ones costs little. Tokens that are returned hold neither the
start nor the end token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Search:
    """How captions are searched for; the names and their meaning are transformers' ``generate``'s.

    A finished caption of n tokens, the end token included, is worth log p / n ** length_penalty.
    ``early_stopping``: an image is done when it has as many finished captions as beams; otherwise
    when no open beam, at its present length, is worth more than the worst of them.
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    min_length: int = 0  # tokens before the end token
    no_repeat_ngram: int = 0  # no n-gram of tokens twice; 0: no such rule
    max_length: int | None = None  # tokens, the end token included; None: the captioner's


@torch.inference_mode()
def generate(captioner, memory, search: Search = Search()) -> list[list[int]]:
    """The tokens of each image's caption: greedy for one beam, else by beam search."""
    if search.beams > 1:
        return beam_search(captioner, memory, search)
    sampled = _roll_out(captioner, memory, 1, search, lambda logits: logits.argmax(-1))
    return [_strip(row, captioner.tokenizer.end_id) for row in sampled.tolist()]


@torch.no_grad()
def sample(captioner, memory, count: int, search: Search = Search()) -> Tensor:
    """(images · count, T) token ids drawn from the captioner's own distribution; the end token
    stands after each caption and fills the rest of its row."""
    return _roll_out(captioner, memory, count, search,
                     lambda logits: logits.softmax(-1).multinomial(1)[:, 0])


def _roll_out(
    captioner, memory, count: int, search: Search, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """``count`` captions an image, each token chosen from its logits (rows, V): (rows, T)."""
    end, device = captioner.tokenizer.end_id, memory.features.device
    images = torch.arange(len(memory), device=device)  # those that are not done
    written = torch.full((len(memory), count, _limit(captioner, search)), end, device=device)
    state = captioner.start(memory)
    tokens = torch.full((len(memory),), captioner.tokenizer.start_id, device=device)
    for position in range(written.shape[2]):
        logits, state = captioner.step(tokens, state)
        if position == 0 and count > 1:
            rows = images[:, None].expand(-1, count)
            logits, state = logits[rows.reshape(-1)], captioner.reorder(state, rows)
        _forbid(logits, written[images, :, :position].flatten(0, 1), end, search)
        tokens = choose(logits.float())
        before = written[images, :, position - 1] if position else None
        now = tokens.view(-1, count)
        if before is not None:
            now = now.masked_fill(before == end, end)  # what is done stays done
        written[images, :, position] = now
        open_ = (now != end).any(1)
        if not open_.all():
            if not open_.any():
                return written[:, :, :position + 1].flatten(0, 1)
            rows = torch.arange(now.numel(), device=device).view(-1, count)[open_]
            state, now, images = captioner.reorder(state, rows), now[open_], images[open_]
        tokens = now.reshape(-1)
    return written.flatten(0, 1)


@dataclass
class _Finished:
    """The best finished captions of one image, at most as many as beams, best first."""

    captions: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, worth: float, tokens: list[int], beams: int) -> None:
        self.captions.append((worth, tokens))
        self.captions.sort(key=lambda caption: -caption[0])
        del self.captions[beams:]

    def is_done(self, search: Search, best_open: float) -> bool:
        """``best_open``: what the best open beam is worth at its present length."""
        full = len(self.captions) == search.beams
        return full and (search.early_stopping or best_open <= self.captions[-1][0])


@torch.inference_mode()
def beam_search(captioner, memory, search: Search) -> list[list[int]]:
    """The tokens of the most valuable caption of each image.

    At each step the 2 · beams most probable continuations of an image are ranked. Those that end
    are finished if they are among the first ``beams``; the first ``beams`` that do not end go on.
    At ``max_length`` the open beams count as finished as they stand.
    """
    end, device, limit = captioner.tokenizer.end_id, memory.features.device, _limit(captioner,
                                                                                    search)
    finished = [_Finished() for _ in range(len(memory))]
    images = list(range(len(memory)))  # those that are not done
    state = captioner.start(memory)
    tokens = torch.full((len(images),), captioner.tokenizer.start_id, device=device)
    written = torch.empty(len(images), 1, 0, dtype=torch.long, device=device)  # (images, beams, t)
    score = torch.zeros(len(images), 1, device=device)  # log p of each beam
    for length in range(1, limit + 1):
        logits, state = captioner.step(tokens, state)
        vocabulary = logits.shape[-1]
        log_p = logits.float().log_softmax(-1)
        _forbid(log_p, written.flatten(0, 1), end, search)
        log_p = log_p.view(*score.shape, vocabulary) + score[..., None]
        best, flat = log_p.flatten(1).topk(min(2 * search.beams, log_p[0].numel()))
        beam, token = flat // vocabulary, flat % vocabulary
        ends = (token == end) | (length == limit)

        worth = best / length**search.length_penalty
        ranked = ends[:, :search.beams] & best[:, :search.beams].isfinite()
        for image, rank in ranked.nonzero().tolist():
            row = [*written[image, beam[image, rank]].tolist(), token[image, rank].item()]
            finished[images[image]].add(worth[image, rank].item(), row, search.beams)
        if length == limit:
            break

        score, order = best.masked_fill(ends, float("-inf")).topk(min(search.beams, best.shape[1]))
        beam, token = beam.gather(1, order), token.gather(1, order)
        best_open = (score[:, 0] / length**search.length_penalty).tolist()
        rest = [place for place, image in enumerate(images)
                if not finished[image].is_done(search, best_open[place])]
        if not rest:
            break
        rows = beam + torch.arange(len(images), device=device)[:, None] * written.shape[1]
        if len(rest) < len(images):
            images, kept = [images[place] for place in rest], torch.tensor(rest, device=device)
            rows, token, score = rows[kept], token[kept], score[kept]
        written = torch.cat([written.flatten(0, 1)[rows], token[..., None]], 2)
        state, tokens = captioner.reorder(state, rows), token.reshape(-1)
    return [_strip(image.captions[0][1], end) for image in finished]


def _limit(captioner, search: Search) -> int:
    return min(search.max_length or captioner.max_length, captioner.max_length)


def _forbid(scores: Tensor, written: Tensor, end: int, search: Search) -> None:
    """Set to -inf, in scores (rows, V), what may not follow ``written`` (rows, t)."""
    n, length = search.no_repeat_ngram, written.shape[1]
    if length < search.min_length:
        scores[:, end] = float("-inf")
    if n and length >= n:
        windows = written.unfold(1, n, 1)  # (rows, length - n + 1, n)
        last = written[:, length - n + 1:]
        repeats = (windows[..., :-1] == last[:, None]).all(-1)
        row, place = repeats.nonzero(as_tuple=True)
        scores[row, windows[row, place, -1]] = float("-inf")


def _strip(tokens: list[int], end: int) -> list[int]:
    return tokens[:tokens.index(end)] if end in tokens else tokens
