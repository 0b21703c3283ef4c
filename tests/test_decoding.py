"""Greedy, sampled and beam-searched captions against exhaustive search and transformers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from makers_caption import END, biased, memory_of, random_gpt2, toy_captioner

from inference.caption import write_captions
from models.captioner import Memory, State
from models.decoding import Search, beam_search, generate, sample


class Table:
    """A captioner whose next token depends on the last one by a table: (images, V, V) log p."""

    max_length = 4
    tokenizer = SimpleNamespace(start_id=END, end_id=END)

    def __init__(self, images: int, vocabulary: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.table = (2 * torch.randn(images, vocabulary, vocabulary)).log_softmax(-1)

    def memory(self) -> Memory:
        return Memory(self.table, [(1, 1)] * len(self.table))

    def start(self, memory):
        return State([], memory.features, None)

    def step(self, tokens, state):
        each = len(tokens) // len(state.memory)
        image = torch.arange(len(tokens)) // each
        state.past.append(each)
        return state.memory[image, tokens], State([each], state.memory, None)

    def reorder(self, state, index):
        return State(state.past, state.memory[index[:, 0] // state.past[0]], None)

    def best(self, image: int, length_penalty: float) -> list[int]:
        """By trying every caption of up to ``max_length`` tokens."""
        found = {}
        for length in range(1, self.max_length + 1):
            for row in itertools.product(range(1, self.table.shape[-1]), repeat=length - 1):
                endings = [END] if length < self.max_length else range(self.table.shape[-1])
                for end in endings:
                    path = [END, *row, end]
                    log_p = sum(self.table[image, a, b].item()
                                for a, b in itertools.pairwise(path))
                    found[tuple(path[1:])] = log_p / length**length_penalty
        best = max(found, key=found.get)
        return list(best[:-1] if best[-1] == END else best)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, length_penalty):
    toy = Table(3, 4, seed)
    # there are fewer captions than beams, so nothing is ever pruned or stopped early
    found = beam_search(toy, toy.memory(), Search(beams=4**4, length_penalty=length_penalty))
    assert [captions[0][1] for captions in found] == [
        toy.best(image, length_penalty) for image in range(3)]
    assert all(captions == sorted(captions, key=lambda one: -one[0]) for captions in found)


def hf_generate(model, memory: Memory, search: Search) -> list[list[int]]:
    from transformers.modeling_outputs import BaseModelOutput

    rules = {}
    if search.min_length:
        rules["min_new_tokens"] = search.min_length
    if search.no_repeat_ngram:
        rules["no_repeat_ngram_size"] = search.no_repeat_ngram
    rows = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory.features), do_sample=False,
        num_beams=search.beams, length_penalty=search.length_penalty, max_new_tokens=16,
        early_stopping=search.early_stopping, **rules)
    rows = [[*row[1:], END] for row in rows.tolist()]
    return [row[:row.index(END)] for row in rows]


def test_beam_search_writes_what_transformers_generate_writes():
    # PEERS: beam search that stops when any beam ends, without length normalization
    from transformers import VisionEncoderDecoderModel, ViTConfig, ViTModel

    encoder = ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
                                 intermediate_size=24, image_size=32))
    ragged = unended = 0
    for case in range(50):
        decoder, captioner = random_gpt2(case)
        bias = (0.5, 1.5, 2.0)[case % 3]
        search = Search(beams=(2, 3, 5)[case // 3 % 3],
                        length_penalty=(1.0, 0.0, 0.7, 2.0)[case % 4],
                        early_stopping=case // 2 % 2 == 1, max_length=16,
                        min_length=3 * (case % 5 == 0), no_repeat_ngram=2 * (case % 7 == 0))
        plain = decoder.forward

        def forward(*args, bias=bias, plain=plain, **kwargs):
            output = plain(*args, **kwargs)
            output.logits[..., END] += bias
            return output

        decoder.forward = forward
        model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            setattr(model.generation_config, name, END)
        captioner, memory = biased(captioner, bias), memory_of(6, case)
        ours = generate(captioner, memory, search)
        assert ours == hf_generate(model, memory, search), (case, search)
        alone = [generate(captioner, Memory(row[None], [(1, 5)]), search)[0]
                 for row in memory.features]
        assert ours == alone, (case, search)
        ragged += len({len(row) for row in ours}) > 1
        unended += any(len(row) == 16 for row in ours)
    assert ragged >= 30, "in too few cases did captions end at different steps"
    assert unended, "in no case was a caption without an end token the best"


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_a_beam_of_one_and_the_argmax_of_full_passes(seed):
    captioner = biased(random_gpt2(seed)[1], 1.0)
    memory = memory_of(5, seed)
    greedy = generate(captioner, memory, Search())
    assert greedy == [captions[0][1] for captions in beam_search(
        captioner, memory, Search(beams=1, early_stopping=True))]
    for image, written in enumerate(greedy):
        alone = Memory(memory.features[image:image + 1], [(1, 5)])
        tokens = torch.tensor([[END, *written][:captioner.max_length]])
        logits = captioner(alone, tokens)[0]
        logits[:, END] += 1.0
        ended = len(written) < captioner.max_length
        assert logits.argmax(-1).tolist()[:len(written) + ended] == [*written, *[END] * ended]


def test_captions_that_never_end_stop_at_the_longest():
    # PEERS: beam search that fails when none ends
    captioner = biased(random_gpt2(1)[1], -1e9)
    for beams in (1, 3):
        rows = generate(captioner, memory_of(2), Search(beams=beams, max_length=7))
        assert [len(row) for row in rows] == [7, 7]


def test_shorter_and_repeating_captions_are_kept_out():
    captioner = biased(random_gpt2(2)[1], 2.0)
    for beams in (1, 4):
        rows = generate(captioner, memory_of(4), Search(
            beams=beams, min_length=5, no_repeat_ngram=2, max_length=20))
        for row in rows:
            assert len(row) >= 5
            pairs = list(itertools.pairwise(row))
            assert len(set(pairs)) == len(pairs)


def test_samples_follow_the_distribution_and_stop_at_the_end_token():
    captioner = toy_captioner(vocab_size=6)
    memory = memory_of(2)
    torch.manual_seed(0)
    rows = sample(captioner, memory, 4000, Search(max_length=3)).view(2, 4000, -1)
    first = captioner(memory, torch.full((2, 1), captioner.tokenizer.start_id))[:, 0].softmax(-1)
    drawn = torch.stack([row[:, 0].bincount(minlength=6) / 4000 for row in rows])
    assert (drawn - first).abs().max() < 0.04
    after = (rows == END).cumsum(-1).roll(1, -1)[..., 1:] > 0
    assert (rows[..., 1:][after] == END).all()


def test_images_of_one_batch_do_not_mix():
    # PEERS: caption state shared between images
    captioner = biased(random_gpt2(3)[1], 1.5)
    memory = memory_of(6)
    back = Memory(memory.features.flip(0), memory.grids)
    for beams in (1, 3):
        forth = generate(captioner, memory, Search(beams=beams))
        assert forth == generate(captioner, back, Search(beams=beams))[::-1]
        assert forth == generate(captioner, memory, Search(beams=beams))


def test_threads_that_share_the_images_write_what_one_writes():
    captioner, memory = toy_captioner(), memory_of(37)
    memory.mask = torch.rand(37, 5) < 0.7
    memory.mask[:, 0] = True
    captioner.tokenizer.decode = lambda ids: " ".join(map(str, ids))
    threads, found = torch.get_num_threads(), {}
    try:
        for count in (1, 2, 3, 16):  # 16: more than there are parts of eight images
            torch.set_num_threads(count)
            found[count] = write_captions(captioner, memory, Search(beams=3))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert len(found[1]) == 37 and all(texts == found[1] for texts in found.values())
