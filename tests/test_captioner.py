"""Tokenizers, teacher forcing, the CIDEr reward, stored features, checkpoints."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

from utils import UserError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_photo
from test_gpt2 import toy_captioner

from inference.caption import patch_features
from metrics.cider import CiderReward, cider
from metrics.ngrams import Corpus
from models.captioner import (
    IGNORED,
    Memory,
    build_captioner,
    caption_targets,
    load_captioner,
    save_captioner,
    see,
    teacher_forcing_loss,
    teacher_inputs,
)
from models.gpt2 import GPT2Config
from models.tokenizer import END_OF_TEXT, Tokenizer, gpt2_tokenizer, train_bpe
from training.loop import parameter_groups

TEXTS = ["A dog runs .", "The man 's dog , a tri-colored one , runs !", "two men -- talking",
         "a café"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 3, 320)


@pytest.fixture(scope="module")
def captioner(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(tokenizer.vocab_size, 12, 16, 2, 2, cross_width=None)
    return see(build_captioner(TINY, config, tokenizer)).eval()


def test_bpe_keeps_words_and_drops_what_metrics_do_not_know(tokenizer):
    decoded = [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS]
    assert decoded == ["a dog runs", "the man's dog a tri-colored one runs", "two men talking",
                       "a café"]
    unseen = "zebra 猫"
    assert tokenizer.decode(tokenizer.encode(unseen)) == unseen  # bytes: nothing is unknown
    assert tokenizer.decode([tokenizer.start_id, *tokenizer.encode("a dog"),
                             tokenizer.end_id]) == "a dog"


def test_a_tokenizer_travels_as_json(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert all(again.encode(text) == tokenizer.encode(text) for text in TEXTS)
    with pytest.raises(UserError, match="tokenizer cannot be read"):
        Tokenizer.from_json("{}")
    no_end = json.loads(tokenizer.to_json())
    no_end["added_tokens"] = []
    del no_end["model"]["vocab"][END_OF_TEXT]
    with pytest.raises(UserError, match="has no token"):
        Tokenizer.from_json(json.dumps(no_end))


def test_gpt2_files_tokenize_as_transformers_does(tmp_path):
    from transformers import GPT2Tokenizer

    plain = train_bpe(TEXTS * 3, 320)
    plain.backend.model.save(str(tmp_path))
    files = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    os.rename(tmp_path / "vocab.json", files[0])
    os.rename(tmp_path / "merges.txt", files[1])
    ours, theirs = gpt2_tokenizer(*files), GPT2Tokenizer(str(files[0]), str(files[1]))
    for text in [*TEXTS, " leading", "twice  spaced", "don't"]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == " ".join(text.split())
    assert ours.end_id == theirs.eos_token_id
    with pytest.raises(UserError, match="vocab.bpe and .*encoder.json are no GPT-2 tok"):
        gpt2_tokenizer(files[1], files[0])


def test_targets_end_and_are_read_one_later(captioner):
    tokenizer = captioner.tokenizer
    targets = caption_targets(captioner, ["a dog", "a dog runs", "dog " * 40])
    short, end = tokenizer.encode("a dog"), tokenizer.end_id
    assert targets[0].tolist() == [*short, end] + [IGNORED] * (12 - len(short) - 1)
    assert len(targets[2]) == 12 and end not in targets[2].tolist()  # cut: no end is taught
    read = teacher_inputs(captioner, targets)
    assert read[0, :len(short) + 1].tolist() == [tokenizer.start_id, *short]
    assert read.min() >= 0


def test_the_loss_counts_the_end_token_and_no_padding(captioner):
    # PEERS: the loss counting padding
    memory = Memory(torch.randn(2, 4, captioner.encoder.embed_dim), [(2, 2)] * 2)
    texts = ["a dog", "two men talking"]
    targets = caption_targets(captioner, texts)
    loss, right = teacher_forcing_loss(captioner, memory, targets)
    expected, hits = [], []
    for image, text in enumerate(texts):
        ids = [*captioner.tokenizer.encode(text), captioner.tokenizer.end_id]
        alone = Memory(memory.features[image:image + 1], [(2, 2)])
        logits = captioner(alone, torch.tensor([[captioner.tokenizer.start_id, *ids[:-1]]]))[0]
        expected += [-logits[i].log_softmax(-1)[token] for i, token in enumerate(ids)]
        hits += [logits[i].argmax().item() == token for i, token in enumerate(ids)]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
    assert right == pytest.approx(np.mean(hits))
    wider = F.pad(targets, (0, 3), value=IGNORED)[:, :12]
    assert teacher_forcing_loss(captioner, memory, wider)[0].item() == pytest.approx(loss.item())


def test_the_reward_is_cider():
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]

    def caption():
        return list(random.choice(words, random.integers(1, 9)))

    references = [[caption() for _ in range(4)] for _ in range(20)]
    hypotheses = [caption() for _ in range(20)]
    reward = CiderReward(references, end=None)
    scores = [reward(image, [text])[0] for image, text in enumerate(hypotheses)]
    assert scores == pytest.approx(cider(Corpus(hypotheses, references)), abs=1e-12)
    # with the end as a word, the same whole caption earns more than one that breaks off
    ending = CiderReward([[["a", "dog", "on", "a", "mat"]], [["two", "men"]]])
    whole, broken = ending(0, [["a", "dog", "on", "a", "mat"], ["a", "dog", "on", "a"]])
    assert whole == pytest.approx(10) and broken < 0.7 * whole


def test_stored_features_follow_encoder_and_files(captioner, tmp_path, monkeypatch):
    paths = [make_photo(tmp_path / f"{i}.png", i) for i in range(3)]
    args = SimpleNamespace(device="cpu", precision="fp32", batch_size=2)
    first = patch_features(captioner, paths, args, tmp_path / "f")
    assert first.shape == (3, 100, 64) and first.dtype == np.float16
    monkeypatch.setattr(captioner, "encode", lambda images: pytest.fail("encoded again"))
    assert np.array_equal(patch_features(captioner, paths, args, tmp_path / "f"), first)
    monkeypatch.undo()
    make_photo(paths[0], 2)
    changed = patch_features(captioner, paths, args, tmp_path / "f")
    assert not np.array_equal(changed[0], first[0]) and np.array_equal(changed[1:], first[1:])
    bias = captioner.encoder.norm.bias
    with torch.no_grad():
        bias += 1
    shifted = patch_features(captioner, paths, args, tmp_path / "f")
    with torch.no_grad():
        bias -= 1
    assert not np.array_equal(shifted[1], changed[1])
    paths[1].write_bytes(b"no photo")
    with pytest.raises(UserError, match="1.png: not an image"):
        patch_features(captioner, paths, args, tmp_path / "f")
    assert len(list((tmp_path / "f").iterdir())) == 3  # nothing half written


def test_a_checkpoint_is_the_captioner_again(captioner, tmp_path):
    save_captioner(tmp_path / "c.safetensors", captioner, about="test")
    again = load_captioner(tmp_path / "c.safetensors")
    images = torch.randn(2, 3, 160, 160)
    tokens = torch.randint(captioner.tokenizer.vocab_size, (2, 5))
    assert torch.allclose(again(images, tokens), captioner(images, tokens), atol=2e-2)  # fp16
    assert again.metadata["about"] == "test" and again.max_length == 12
    with pytest.raises(UserError, match="a captioner checkpoint, a base is needed"):
        load_captioner(tmp_path / "c.safetensors", "base")


def test_a_captioner_keeps_what_its_base_knows(tokenizer):
    config = GPT2Config(tokenizer.vocab_size, 12, 16, 2, 2, cross_width=None)
    base = build_captioner(TINY, config, tokenizer).eval()
    captioner = see(base, cross_width=8).eval()
    assert captioner.memory_proj.weight.shape == (16, 64)  # widths differ: projected
    tokens = torch.randint(captioner.tokenizer.vocab_size, (2, 5))
    assert torch.equal(captioner(None, tokens), base(None, tokens))


def test_decay_spares_norms_biases_and_embeddings():
    captioner = toy_captioner(encoder_width=40).requires_grad_(True)
    captioner.encoder.weight = torch.nn.Parameter(torch.ones(2, 2))
    groups = parameter_groups(captioner, 0.05, {"encoder.": 0.1})
    names = {id(parameter): name for name, parameter in captioner.named_parameters()}
    found = {names[id(p)]: (group["weight_decay"], group["lr_scale"])
             for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert found["encoder.weight"] == (0.05, 0.1)
    assert found["decoder.h.0.attn.c_attn.weight"] == found["memory_proj.weight"] == (0.05, 1.0)
    for name in ("decoder.wte.weight", "decoder.wpe.weight", "decoder.ln_f.weight",
                 "decoder.h.0.attn.c_attn.bias"):
        assert found[name] == (0.0, 1.0)
