"""Methods over a frozen base: what generation, training, merging and files must keep, with every
new tensor set to random values."""

from __future__ import annotations

import re

from utils import UserError

import pytest
import torch
from makers_caption import memory_of, toy_captioner
from torch import nn

from models.captioner import Memory, teacher_forcing_loss
from models.checkpoint import read_tensors, save_checkpoint
from models.decoding import Search, generate
from models.gpt2 import GPT2Config, from_gpt2
from models.peft import (
    OPTIONS,
    count_parts,
    identity_of,
    insert,
    load_peft,
    merge_lora,
    method_of,
    save_peft,
    trained,
)
from models.vit_gpt2 import ViTGPT2, add_cross_attention

MLP = ["attn.c_attn", "attn.c_proj", "crossattention.q_attn", "mlp.c_fc", "mlp.c_proj"]
METHODS = [method_of("cross"), method_of("cross", 12), method_of("adapter", bottleneck=5),
           method_of("prefix", prefix_length=1), method_of("prefix", prefix_length=6),
           method_of("lora", rank=3), method_of("lora", 6, rank=2, targets=MLP),
           method_of("full")]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(
    map(str, [method.name, *method.options.values()][:2])))


def make_base(seed: int = 0) -> ViTGPT2:
    torch.manual_seed(seed)
    base = toy_captioner(cross_width=None, max_length=12)
    base.encoder.weight = nn.Parameter(torch.randn(3), requires_grad=False)
    return base


def randomized(base: ViTGPT2, method, seed: int = 1) -> ViTGPT2:
    """Every trained tensor random, and as float16 can hold it."""
    captioner = insert(base, method).eval()
    torch.manual_seed(seed)
    for tensor in trained(captioner).values():
        tensor.data = (0.4 * torch.randn(tensor.shape)).half().float()
    return captioner


# --- generation ---------------------------------------------------------------------------------


@each_method
def test_cached_generation_equals_argmax_without_a_cache(method):
    captioner, memory = randomized(make_base(), method), memory_of(20, seed=2)
    memory.features *= 3  # from here on: captions that differ, and whose words do
    captioner.decoder.wte.weight.data *= 0.2
    captioner.decoder.wpe.weight.data *= 6
    captioner.decoder.wte.weight.data[0] *= 1.5
    tokens = torch.zeros(20, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(captioner.max_length):
            tokens = torch.cat([tokens, captioner(memory, tokens)[:, -1:].argmax(-1)], 1)
    alone = [row[:row.index(0)] if 0 in row else row for row in tokens[:, 1:].tolist()]
    assert generate(captioner, memory) == alone
    assert len(set(map(tuple, alone))) > 5 and len(set(sum(alone, []))) > 4


@each_method
def test_beams_know_the_value_of_what_they_wrote(method):
    # reordered rows: a beam's score is that of its tokens in one pass
    memory, captioner = memory_of(3, 5), randomized(make_base(), method)
    wide = generate(captioner, memory, Search(beams=4, length_penalty=0.0, max_length=6))
    greedy = generate(captioner, memory, Search(max_length=6))

    def log_p(image, row):
        read = torch.tensor([[0, *row]])
        told = captioner(Memory(memory.features[image:image + 1], []), read)[0].log_softmax(-1)
        row = [*row, 0][:6]
        return told[range(len(row)), row].sum().item()

    with torch.no_grad():
        for image, (best, first) in enumerate(zip(wide, greedy, strict=True)):
            assert log_p(image, best) >= log_p(image, first) - 1e-4


@each_method
def test_what_a_word_looked_at_is_what_the_decoder_uses(method):
    memory, captioner = memory_of(2, 3), randomized(make_base(), method)
    tokens = torch.randint(1, 30, (2, 5))
    for layer in (0, -1):
        weights = captioner.cross_attention(memory, tokens, layer)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    block = captioner.decoder.h[-1]  # all of the last weights' values, through its own projection
    seen = {}
    hook = block.crossattention.c_proj.register_forward_pre_hook(
        lambda module, inputs: seen.update(out=inputs[0]))
    shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), tokens[:, :-1]], 1)
    captioner(memory, shifted)
    hook.remove()
    value = captioner.start(memory).memory[-1][1]  # (images, heads, N, D)
    torch.testing.assert_close((weights @ value).transpose(1, 2).flatten(2), seen["out"],
                               atol=1e-4, rtol=1e-4)


def test_a_prefix_is_seen_by_every_token_and_moves_no_position():
    # PEERS: a prefix mask that hides a token from itself
    captioner = randomized(make_base(), method_of("prefix", prefix_length=4))
    attention = captioner.decoder.h[0].attn
    x = torch.randn(1, 5, 24)
    q, k, v = attention.c_attn(x).view(5, 3, 3, 8).permute(1, 2, 0, 3)  # (heads, T, D) each
    expected = torch.zeros(5, 3, 8)
    for head in range(3):
        keys, values = (torch.cat([learned[head], own[head]])
                        for learned, own in zip(attention.prefix, (k, v), strict=True))
        for place in range(5):
            visible = 4 + place + 1
            shares = (keys[:visible] @ q[head, place] / 8**0.5).softmax(0)
            expected[place, head] = shares @ values[:visible]
    expected = attention.c_proj(expected.flatten(1))
    got, past = attention(x, None)
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=1e-4)
    assert past[0].shape[2] == 5  # so that the next token gets position 5
    first, past = attention(x[:, :2], None)
    rest, _ = attention(x[:, 2:], past)
    torch.testing.assert_close(torch.cat([first, rest], 1), got, atol=1e-5, rtol=1e-4)


# --- what is inserted ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter", "lora"])
def test_a_fresh_method_changes_nothing(name):
    base, tokens, memory = make_base(), torch.randint(30, (2, 6)), memory_of(2)
    models = []
    for method in ("cross", name):
        torch.manual_seed(3)
        models.append(insert(base, method_of(method)).eval())
    assert torch.equal(models[1](None, tokens), base(None, tokens))
    torch.manual_seed(3)
    plain = add_cross_attention(base).eval()
    assert torch.equal(models[1](memory, tokens), plain(memory, tokens))


@each_method
def test_training_changes_what_is_trained_and_nothing_else(method):
    base = make_base()
    captioner = randomized(base, method)
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    names = {name for name, tensor in captioner.named_parameters() if tensor.requires_grad}
    optimizer = torch.optim.AdamW([p for p in captioner.parameters() if p.requires_grad], 1e-2)
    targets = torch.randint(1, 30, (4, 7))
    for _ in range(2):
        optimizer.zero_grad()
        teacher_forcing_loss(captioner, memory_of(2, 4), targets)[0].backward()
        optimizer.step()
    for name, tensor in captioner.named_parameters():
        assert (tensor.grad is not None and tensor.grad.any()) == (name in names), name
    for name, tensor in captioner.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in names), name
    assert identity_of(base) == identity_of(make_base())
    if method.name != "full":
        state = base.state_dict()
        kept = {re.sub(".base_layer", "", name): tensor
                for name, tensor in captioner.state_dict().items()}
        assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


def test_merged_lora_equals_unmerged():
    memory, tokens = memory_of(3), torch.randint(30, (3, 8))
    captioner = randomized(make_base(), METHODS[6])
    with torch.no_grad():
        before = captioner(memory, tokens)
        merge_lora(captioner)
        after = captioner(memory, tokens)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    assert not any("lora" in name for name, _ in captioner.named_modules())


def test_lora_changes_exactly_what_is_named():
    names = set(trained(insert(make_base(), METHODS[6])))
    changed = {name.split(".", 3)[3].removesuffix(".lora_A.weight") for name in names
               if name.endswith(".lora_A.weight")}
    assert changed == set(MLP)
    with pytest.raises(UserError, match="no linear layer c_attn; its blocks have attn.c_attn, "):
        insert(make_base(), method_of("lora", targets=["c_attn"]))


def test_counts_are_those_of_the_course_s_size():
    with torch.device("meta"):
        config = GPT2Config(cross_width=None)
        base = toy_captioner(50257, 1024, **{key: getattr(config, key) for key in (
            "max_length", "width", "layers", "heads", "cross_width")})
        captioners = {name: insert(base, method_of(name)) for name in OPTIONS}
        memory, tokens = Memory(torch.empty(2, 196, 1024), []), torch.zeros(4, 3, dtype=torch.long)
        for captioner in captioners.values():
            assert captioner(memory, tokens).shape == (4, 3, 50257)
    parts = {name: count_parts(trained(captioner)) for name, captioner in captioners.items()}
    norms = 12 * 2 * 768
    assert parts["cross"] == {"cross_attention": 12 * 2_362_368 + norms,
                              "memory_projection": 1024 * 768 + 768}
    assert parts["adapter"]["adapters"] == 24 * (2 * 768 * 64 + 64 + 768)
    assert parts["prefix"]["prefix"] == 12 * 2 * 16 * 768
    assert parts["lora"]["lora"] == 12 * 16 * 768 * (4 + 2 + 2 + 3 + 2)
    assert parts["full"]["decoder"] == 124_439_808


# --- files --------------------------------------------------------------------------------------


@each_method
def test_a_file_holds_what_was_trained_and_gives_the_same_captions(method, tmp_path):
    base, memory, file = make_base(), memory_of(6, 7), tmp_path / "m.safetensors"
    captioner = randomized(base, method)
    save_peft(file, captioner, method, identity_of(base), about="test")
    tensors, metadata = read_tensors(file)
    assert set(tensors) == set(trained(captioner)) and metadata["kind"] == "peft"
    assert not any(mark in name for name in tensors for mark in ("base_layer", "default"))
    again = load_peft(file, make_base(), "--base b", method.name)
    assert generate(again, memory) == generate(captioner, memory)
    assert again.metadata["about"] == "test" and not trained(again)


def test_one_base_has_one_digest_whatever_its_file():
    base = make_base()
    state = base.decoder.state_dict()
    theirs = {key: tensor.t() if key.startswith("h.") and tensor.ndim == 2 else tensor
              for key, tensor in state.items()}
    course = theirs | {"h.0.attn.bias": torch.ones(1, 1, 12, 12)}
    hub = {f"transformer.{key}": tensor for key, tensor in theirs.items()}
    hub["lm_head.weight"] = theirs["wte.weight"]
    halves = {key: tensor.half() for key, tensor in hub.items()}
    for tensors in (course, hub, halves):
        other = make_base(5)
        other.encoder.load_state_dict(base.encoder.state_dict())
        assert identity_of(other)["decoder"] != identity_of(base)["decoder"]
        other.decoder.load_state_dict(from_gpt2(tensors))
        assert identity_of(other) == identity_of(base)


def test_other_bases_and_methods_are_refused(tmp_path):
    base, file = make_base(), tmp_path / "m.safetensors"
    method = method_of("adapter", bottleneck=5)
    save_peft(file, randomized(base, method), method, identity_of(base))

    def refused(message, base=base, **options):
        with pytest.raises(UserError, match=message) as error:
            load_peft(file, base, "--decoder d.bin", **options)
        assert "\n" not in str(error.value)

    command = "peft_caption.py train --method adapter --decoder d.bin --images DIR"
    other = make_base()
    other.decoder.ln_f.bias.data[0] += 1
    refused(rf"another base \(its decoder differs\); train one .*{command}", other)
    other.encoder.weight.data[0] += 1
    refused("its encoder and its decoder differs", other)
    torch.manual_seed(0)
    refused("its encoder and its decoder differs", toy_captioner(cross_width=None, width=48))
    refused("holds the tensors of adapter, not of lora", method="lora")
    tensors, metadata = read_tensors(file)
    described = metadata["method"] | {"name": "lora", "options": {"rank": 4}}
    save_checkpoint(file, tensors, metadata | {"method": described})
    refused(r"m.safetensors does not fit the model: \d+ missing .*; \d+ left over")
    described["options"] = {"rank": 0}
    save_checkpoint(file, tensors, metadata | {"method": described})
    refused("describes its model wrongly: --rank must be 1 or more, not 0")
    save_checkpoint(file, tensors | {"decoder.ln_f.bias": torch.zeros(24)}, metadata)
    refused(r"1 left over \(decoder.ln_f.bias\)")  # the base's own are not to be replaced


@pytest.mark.parametrize("words, message", [
    ({"name": "lora", "rank": 0}, "--rank must be 1 or more, not 0"),
    ({"name": "prefix", "prefix_length": -2}, "--prefix-length must be 1 or more, not -2"),
    ({"name": "adapter", "rank": 4}, "--rank has no effect on adapter"),
    ({"name": "tuning"}, "no method tuning; there are cross, adapter"),
    ({"name": "cross", "cross_width": 7}, "--cross-width 7 is no multiple of the decoder's 3"),
])
def test_sizes_that_make_no_sense_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        insert(make_base(), method_of(**words))
