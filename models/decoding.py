"""Greedy search, sampling and beam search over any captioner (``models.captioner``).

All images and beams of a batch take each step together, with cached keys and values. An image whose
caption has ended leaves the batch, so one long caption among short ones costs little. The tokens
that are returned contain neither the start nor the end token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.captioner import Captioner, Memory


@dataclass(frozen=True)
class Search:
    """How captions are searched for. Names and meaning are those of transformers' ``generate``.

    The score of a finished caption of n tokens, the end token included, is
    log p / n ** length_penalty.
    ``early_stopping``: the search for an image stops when it has as many finished captions as
    beams; otherwise when no running beam, at its present length, scores higher than the worst of
    them.
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    min_length: int = 0  # tokens before the end token
    no_repeat_ngram: int = 0  # no n-gram of tokens occurs twice; 0: no such rule
    max_length: int | None = None  # tokens, the end token included; None: the captioner's
    rerank: float = 0.0  # weight of the captioner's judge among the finished captions; 0: no judge

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Search:
        """What the options of ``inference.options.add_search_options`` ask for."""
        return cls(beams=args.beam, length_penalty=args.length_penalty, min_length=args.min_length,
                   no_repeat_ngram=args.no_repeat_ngram, max_length=args.max_length,
                   rerank=getattr(args, "rerank", 0.0))


@torch.inference_mode()
def generate(captioner: Captioner, memory: Memory, search: Search = Search()) -> list[list[int]]:
    """The tokens of each image's caption: greedy with one beam, else by beam search, whose finished
    captions the captioner's judge ranks again where ``search.rerank`` is not 0."""
    if search.beams > 1:
        found = beam_search(captioner, memory, search)
        if not search.rerank:
            return [captions[0][1] for captions in found]
        texts = [[captioner.tokenizer.decode(ids) for _, ids in captions] for captions in found]
        return captioner.judge.choose(memory.looks, found, texts, search.rerank)
    rows = _write(captioner, memory, 1, search, lambda logits: logits.argmax(-1))
    return [_before_end(row, captioner.tokenizer.end_id) for row in rows.tolist()]


@torch.no_grad()
def sample(
    captioner: Captioner, memory: Memory, count: int, search: Search = Search()
) -> Tensor:
    """(images · count, T) token ids drawn from the captioner's own distribution; the end token
    stands after each caption and fills the rest of its row."""
    return _write(captioner, memory, count, search,
                  lambda logits: logits.softmax(-1).multinomial(1)[:, 0])


def _write(
    captioner: Captioner, memory: Memory, count: int, search: Search,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """``count`` captions an image, (images · count, T) token ids. ``choose`` picks each token from
    the logits (rows, vocabulary)."""
    end, device = captioner.tokenizer.end_id, memory.features.device
    images = torch.arange(len(memory), device=device)  # those whose captions have not all ended
    written = torch.full((len(memory), count, _limit(captioner, search)), end, device=device)
    state = captioner.start(memory)
    tokens = torch.full((len(memory),), captioner.tokenizer.start_id, device=device)
    for position in range(written.shape[2]):
        logits, state = captioner.step(tokens, state)
        if position == 0 and count > 1:
            rows = images[:, None].expand(-1, count)
            logits, state = logits[rows.reshape(-1)], captioner.reorder(state, rows)
        _forbid(logits, written[images, :, :position].flatten(0, 1), end, search)
        tokens = choose(logits.float()).view(-1, count)
        if position:
            ended = written[images, :, position - 1] == end
            tokens = tokens.masked_fill(ended, end)
        written[images, :, position] = tokens
        running = (tokens != end).any(1)
        if not running.any():
            return written[:, :, :position + 1].flatten(0, 1)
        if not running.all():
            rows = torch.arange(tokens.numel(), device=device).view(-1, count)[running]
            state, tokens = captioner.reorder(state, rows), tokens[running]
            images = images[running]
        tokens = tokens.reshape(-1)
    return written.flatten(0, 1)


@dataclass
class _Finished:
    """The best finished captions of one image, at most as many as beams, best first."""

    captions: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, score: float, tokens: list[int], beams: int) -> None:
        self.captions.append((score, tokens))
        self.captions.sort(key=lambda caption: -caption[0])
        del self.captions[beams:]

    def is_done(self, search: Search, best_running: float) -> bool:
        """``best_running``: the score of the best running beam at its present length."""
        full = len(self.captions) == search.beams
        return full and (search.early_stopping or best_running <= self.captions[-1][0])


@torch.inference_mode()
def beam_search(
    captioner: Captioner, memory: Memory, search: Search
) -> list[list[tuple[float, list[int]]]]:
    """Each image's finished captions, at most as many as beams: (score, tokens), best first.

    At each step the 2 · beams most probable continuations of an image are ranked. Those that end
    are finished captions if they are among the first ``beams``; the first ``beams`` that do not end
    are the running beams of the next step. At ``max_length`` the running beams count as finished.
    """
    end, device = captioner.tokenizer.end_id, memory.features.device
    limit = _limit(captioner, search)
    finished = [_Finished() for _ in range(len(memory))]
    images = list(range(len(memory)))  # those whose search has not stopped
    state = captioner.start(memory)
    tokens = torch.full((len(images),), captioner.tokenizer.start_id, device=device)
    written = torch.empty(len(images), 1, 0, dtype=torch.long, device=device)  # (images, beams, t)
    beam_log_p = torch.zeros(len(images), 1, device=device)
    for length in range(1, limit + 1):
        logits, state = captioner.step(tokens, state)
        vocabulary = logits.shape[-1]
        log_p = logits.float().log_softmax(-1)
        _forbid(log_p, written.flatten(0, 1), end, search)
        log_p = log_p.view(*beam_log_p.shape, vocabulary) + beam_log_p[..., None]
        best, flat = log_p.flatten(1).topk(min(2 * search.beams, log_p[0].numel()))
        beam, token = flat // vocabulary, flat % vocabulary
        ends = (token == end) | (length == limit)

        scores = best / length**search.length_penalty
        ranked = ends[:, :search.beams] & best[:, :search.beams].isfinite()
        for image, rank in ranked.nonzero().tolist():
            row = [*written[image, beam[image, rank]].tolist(), token[image, rank].item()]
            finished[images[image]].add(scores[image, rank].item(), row, search.beams)
        if length == limit:
            break

        beam_log_p, order = best.masked_fill(ends, float("-inf")).topk(
            min(search.beams, best.shape[1]))
        beam, token = beam.gather(1, order), token.gather(1, order)
        best_running = (beam_log_p[:, 0] / length**search.length_penalty).tolist()
        rest = [place for place, image in enumerate(images)
                if not finished[image].is_done(search, best_running[place])]
        if not rest:
            break
        rows = beam + torch.arange(len(images), device=device)[:, None] * written.shape[1]
        if len(rest) < len(images):
            images, kept = [images[place] for place in rest], torch.tensor(rest, device=device)
            rows, token, beam_log_p = rows[kept], token[kept], beam_log_p[kept]
        written = torch.cat([written.flatten(0, 1)[rows], token[..., None]], 2)
        state, tokens = captioner.reorder(state, rows), token.reshape(-1)
    return [[(score, _before_end(tokens, end)) for score, tokens in image.captions]
            for image in finished]


def _limit(captioner: Captioner, search: Search) -> int:
    return min(search.max_length or captioner.max_length, captioner.max_length)


def _forbid(scores: Tensor, written: Tensor, end: int, search: Search) -> None:
    """Set to -inf, in scores (rows, vocabulary), the tokens that may not follow ``written``
    (rows, t)."""
    n, length = search.no_repeat_ngram, written.shape[1]
    if length < search.min_length:
        scores[:, end] = float("-inf")
    if n and length >= n:
        windows = written.unfold(1, n, 1)  # (rows, length - n + 1, n)
        last = written[:, length - n + 1:]
        repeats = (windows[..., :-1] == last[:, None]).all(-1)
        row, place = repeats.nonzero(as_tuple=True)
        scores[row, windows[row, place, -1]] = float("-inf")


def _before_end(tokens: list[int], end: int) -> list[int]:
    return tokens[:tokens.index(end)] if end in tokens else tokens
