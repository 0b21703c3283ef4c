"""Tokenizers, teacher forcing, the CIDEr reward, stored features, checkpoints."""

from __future__ import annotations

import argparse
import json
import os

from utils import UserError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_photo
from makers_caption import TEXTS, toy_captioner
from safetensors import safe_open

from ckpt import registry
from data.compute import Compute
from inference.caption import patch_features
from inference.options import add_search_options
from inference.peft import open_checkpoint
from metrics.cider import CiderReward, cider
from metrics.ngrams import Corpus
from models import checkpoint
from models.captioner import (
    IGNORED,
    Captioner,
    Memory,
    caption_targets,
    teacher_forcing_loss,
    teacher_inputs,
)
from models.captioner_files import (
    blend_captioners,
    load_captioner,
    save_captioner,
)
from models.catr import CATR
from models.decoding import Search
from models.gpt2 import GPT2Config
from models.peft import identity_of, insert, method_of, save_peft
from models.tokenizer import END_OF_TEXT, Tokenizer, gpt2_tokenizer, train_bpe
from models.vit_gpt2 import ViTGPT2, add_cross_attention, build_captioner
from training.optimizers import parameter_groups


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 3, 320)


@pytest.fixture(scope="module")
def base(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(tokenizer.vocab_size, 12, 16, 2, 2, cross_width=None)
    return build_captioner(TINY, config, tokenizer).eval()


@pytest.fixture(scope="module")
def captioner(base):
    torch.manual_seed(0)
    return add_cross_attention(base).eval()


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
    loss, accuracy = teacher_forcing_loss(captioner, memory, targets)
    expected, hits = [], []
    for image, text in enumerate(texts):
        ids = [*captioner.tokenizer.encode(text), captioner.tokenizer.end_id]
        alone = Memory(memory.features[image:image + 1], [(2, 2)])
        logits = captioner(alone, torch.tensor([[captioner.tokenizer.start_id, *ids[:-1]]]))[0]
        expected += [-logits[i].log_softmax(-1)[token] for i, token in enumerate(ids)]
        hits += [logits[i].argmax().item() == token for i, token in enumerate(ids)]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
    assert accuracy == pytest.approx(np.mean(hits))
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
    compute = Compute("cpu", "fp32", 2)
    first = patch_features(captioner, paths, compute, tmp_path / "f")
    assert first.shape == (3, 100, 64) and first.dtype == np.float16
    monkeypatch.setattr(captioner, "encode", lambda images: pytest.fail("encoded again"))
    assert np.array_equal(patch_features(captioner, paths, compute, tmp_path / "f"), first)
    monkeypatch.undo()
    make_photo(paths[0], 2)
    changed = patch_features(captioner, paths, compute, tmp_path / "f")
    assert not np.array_equal(changed[0], first[0]) and np.array_equal(changed[1:], first[1:])
    bias = captioner.encoder.norm.bias
    with torch.no_grad():
        bias += 1
    shifted = patch_features(captioner, paths, compute, tmp_path / "f")
    with torch.no_grad():
        bias -= 1
    assert not np.array_equal(shifted[1], changed[1])
    paths[1].write_bytes(b"no photo")
    with pytest.raises(UserError, match="1.png cannot be read: not an image"):
        patch_features(captioner, paths, compute, tmp_path / "f")
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


def test_a_captioner_keeps_what_its_base_knows(base):
    captioner = add_cross_attention(base, cross_width=8).eval()
    assert captioner.memory_proj.weight.shape == (16, 64)  # widths differ: projected
    tokens = torch.randint(captioner.tokenizer.vocab_size, (2, 5))
    assert torch.equal(captioner(None, tokens), base(None, tokens))


def test_both_architectures_are_captioners():
    assert issubclass(ViTGPT2, Captioner) and issubclass(CATR, Captioner)
    for shared in ("forward", "step", "reorder", "cross_attention", "check_layer", "transform"):
        assert not {shared} & (vars(ViTGPT2).keys() | vars(CATR).keys()), shared
    with pytest.raises(TypeError, match="abstract"):
        Captioner(None, {})


def test_a_checkpoint_is_read_once(base, captioner, tmp_path, monkeypatch):
    method = method_of("adapter", bottleneck=4)
    save_captioner(tmp_path / "captioner.safetensors", captioner)
    save_captioner(tmp_path / "base.safetensors", base)
    save_peft(tmp_path / "peft.safetensors", insert(base, method), method, identity_of(base))
    monkeypatch.setattr(registry, "BASE", tmp_path / "base.safetensors")
    read = []
    monkeypatch.setattr(checkpoint, "safe_open", lambda path, **options: (
        read.append(path.name), safe_open(path, **options))[1])
    assert open_checkpoint(tmp_path / "captioner.safetensors").metadata["kind"] == "captioner"
    assert read == ["captioner.safetensors"]
    assert open_checkpoint(tmp_path / "peft.safetensors").metadata["kind"] == "peft"
    assert read[1:] == ["peft.safetensors", "base.safetensors"]


def test_an_unknown_architecture_is_refused(captioner, tmp_path):
    save_captioner(tmp_path / "c.safetensors", captioner, architecture="lstm")
    with pytest.raises(UserError, match="c.safetensors describes its model wrongly: .* lstm"):
        load_captioner(tmp_path / "c.safetensors")


def test_a_blend_lies_between_two_captioners(base, captioner, tmp_path):
    other = add_cross_attention(base)
    for parameter in other.decoder.parameters():
        parameter.data += 0.5
    paths = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "misfit")]
    for path, model in zip(paths, (captioner, other, add_cross_attention(base, cross_width=8)),
                           strict=True):
        save_captioner(path, model)
    blended = blend_captioners(*paths[:2], 0.25).state_dict()
    first, second = (load_captioner(path).state_dict() for path in paths[:2])
    assert blended.keys() == first.keys()
    for key, tensor in blended.items():
        torch.testing.assert_close(tensor, 0.75 * first[key] + 0.25 * second[key])
    for pair in (paths[0], paths[2]), (paths[2], paths[0]):
        with pytest.raises(UserError, match=rf"{pair[1].name} does not fit the model: .*crossatt"):
            blend_captioners(*pair, 0.5)
    tokenizer = train_bpe(["zebra crossing"] * 3, 300)
    config = GPT2Config(tokenizer.vocab_size, 12, 16, 2, 2)
    save_captioner(paths[2], build_captioner(TINY, config, tokenizer))
    with pytest.raises(UserError, match="misfit.safetensors have different tokenizers"):
        blend_captioners(paths[0], paths[2], 0.5)


def test_a_search_comes_from_its_options():
    parser = argparse.ArgumentParser()
    add_search_options(parser)
    words = ["--beam", "2", "--length-penalty", "0.5", "--min-length", "3", "--max-length", "9",
             "--no-repeat-ngram", "4"]
    assert Search.from_args(parser.parse_args(words)) == Search(
        beams=2, length_penalty=0.5, min_length=3, max_length=9, no_repeat_ngram=4)


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
