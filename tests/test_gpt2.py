"""GPT-2 with cross-attention against transformers', cached steps against full passes."""

from __future__ import annotations

from utils import UserError

import pytest
import torch
from makers_caption import random_gpt2, toy_captioner

from models.captioner import Memory
from models.checkpoint import load_strict
from models.gpt2 import GPT2, from_gpt2, gpt2_config


def test_logits_equal_transformers():
    theirs, captioner = random_gpt2(0)
    tokens, features = torch.randint(30, (4, 9)), torch.randn(4, 7, 24)
    expected = theirs(tokens, encoder_hidden_states=features).logits
    assert torch.allclose(captioner(Memory(features, []), tokens), expected, atol=1e-5)


def test_five_captions_share_one_memory():
    theirs, captioner = random_gpt2(1)
    tokens, features = torch.randint(30, (10, 9)), torch.randn(2, 7, 24)
    expected = theirs(tokens, encoder_hidden_states=features.repeat_interleave(5, 0)).logits
    assert torch.allclose(captioner(Memory(features, []), tokens), expected, atol=1e-5)


def test_attention_equals_transformers_eager():
    theirs, captioner = random_gpt2(2)
    theirs.set_attn_implementation("eager")
    tokens, features = torch.randint(1, 30, (3, 6)), torch.randn(3, 7, 24)
    shifted = torch.cat([torch.zeros(3, 1, dtype=torch.long), tokens[:, :-1]], 1)
    expected = theirs(shifted, encoder_hidden_states=features, output_attentions=True)
    for layer in (0, 1, -1):
        ours = captioner.cross_attention(Memory(features, []), tokens, layer)
        assert torch.allclose(ours, expected.cross_attentions[layer], atol=1e-6)
        assert torch.allclose(ours.sum(-1), torch.ones(()), atol=1e-6)


@pytest.mark.parametrize("options", [
    {}, {"encoder_width": 40}, {"cross_width": 12}, {"encoder_width": 10, "cross_width": 6}])
def test_cached_steps_equal_the_full_pass(options):
    torch.manual_seed(3)
    captioner = toy_captioner(**options)
    features = torch.randn(2, 7, options.get("encoder_width", 24))
    memory = Memory(features, [], torch.tensor([[True] * 7, [True] * 4 + [False] * 3]))
    tokens = torch.randint(30, (2, 3, 10))  # three rows an image
    tokens[:, :, 0] = tokens[:, :1, 0]
    full = captioner(memory, tokens.flatten(0, 1))
    logits, state = captioner.step(tokens[:, 0, 0], captioner.start(memory))
    assert torch.allclose(logits, full[::3, 0], atol=1e-5)
    state = captioner.reorder(state, torch.tensor([[0, 0, 0], [1, 1, 1]]))
    for position in range(1, 10):
        logits, state = captioner.step(tokens[:, :, position].flatten(), state)
        assert torch.allclose(logits, full[:, position], atol=1e-5)
    # what the mask hides changes nothing
    hidden = features.clone()
    hidden[1, 4:] = 9.0
    assert torch.equal(
        captioner(Memory(hidden, [], memory.mask), tokens.flatten(0, 1)), full)


def test_training_without_dropout_computes_what_evaluation_does():
    captioner = toy_captioner(cross_width=12, dropout=0.0)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    memory, tokens = Memory(torch.randn(2, 7, 24), [], mask), torch.randint(30, (4, 6))
    expected = captioner(memory, tokens)
    assert torch.allclose(captioner.train()(memory, tokens), expected, atol=1e-5)


def test_reordered_rows_are_the_rows_that_were_asked_for():
    captioner = toy_captioner()
    memory = Memory(torch.randn(3, 7, 24), [])
    state = captioner.step(torch.tensor([1, 2, 3]), captioner.start(memory))[1]
    both = captioner.reorder(state, torch.tensor([[2, 2], [0, 0]]))  # image 1 has left
    logits, _ = captioner.step(torch.tensor([4, 5, 6, 7]), both)
    swapped = Memory(memory.features[[2, 0]], [])
    full = captioner(swapped, torch.tensor([[3, 4], [3, 5], [1, 6], [1, 7]]))[:, -1]
    assert torch.allclose(logits, full, atol=1e-5)


def test_past_longer_than_one_token_hides_no_token_from_itself():
    # PEERS: a prefix mask that hides a token from itself
    decoder = toy_captioner().decoder
    tokens = torch.randint(30, (2, 8))
    memory = decoder.project_memory(torch.randn(2, 7, 24))
    full, _ = decoder(tokens, memory)
    _, past = decoder(tokens[:, :3], memory)
    rest, _ = decoder(tokens[:, 3:], memory, past=past)
    assert torch.allclose(rest, full[:, 3:], atol=1e-5)


def test_logits_of_some_positions_are_those_of_all():
    captioner = toy_captioner()
    memory, tokens = Memory(torch.randn(2, 7, 24), []), torch.randint(30, (4, 6))
    where = torch.rand(4, 6) < 0.5
    assert torch.allclose(captioner(memory, tokens, where), captioner(memory, tokens)[where],
                          atol=1e-6)


def test_public_files_are_recognised_with_prefix_buffers_and_tied_output():
    theirs, _ = random_gpt2(4)
    language = {key: tensor for key, tensor in theirs.state_dict().items() if "cross" not in key}
    bare = {key.removeprefix("transformer."): tensor for key, tensor in language.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    for tensors in (language, bare):
        tensors = from_gpt2(tensors)
        config = gpt2_config(tensors, "file")
        assert (config.vocab_size, config.max_length, config.width, config.layers) == (30, 32, 24,
                                                                                       2)
        model = GPT2(config)
        load_strict(model, tensors, "file")
        assert torch.equal(model.h[0].attn.c_attn.weight,
                           theirs.transformer.h[0].attn.c_attn.weight.t())


def test_public_sizes_have_heads_of_64():
    tensors = {"wte.weight": torch.zeros(9, 768), "wpe.weight": torch.zeros(4, 768),
               "h.0.attn.c_attn.weight": torch.zeros(1, 1)}
    assert gpt2_config(tensors, "file").heads == 12
    with pytest.raises(UserError, match="file is no GPT-2: wpe.weight missing"):
        gpt2_config({key: tensor for key, tensor in tensors.items() if key != "wpe.weight"},
                    "file")
