"""Captioners' losses and validation scores against formulas."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers_training import tiny_base

from metrics.captions import score_captions
from metrics.ptb import tokenize_all
from models.decoding import Search, sample
from models.vit_gpt2 import add_cross_attention
from training.caption import References, self_critical_loss, validation_scores
from training.recipe import CaptionOptions


def test_validation_is_the_mean_over_sources():
    sources = [[["a red square"], ["a green square"]],
               [["a dog runs"], ["two men talk"], ["a cat sleeps"]]]
    captions = ["a red square", "a blue square", "a dog sleeps", "two men talk", "a cat"]
    first, second = (score_captions(captions[part], references)[0]["CIDEr"] for part, references
                     in zip((slice(2), slice(2, 5)), sources, strict=True))
    scores = validation_scores(captions, sources)
    assert scores["val_CIDEr_1"] == first and scores["val_CIDEr_2"] == second
    assert scores["val_CIDEr"] == pytest.approx((first + second) / 2) and first != second
    assert scores["val_distinct"] == 1 and scores["val_length"] == pytest.approx(14 / 5)
    assert "val_CIDEr_1" not in validation_scores(captions[:2], sources[:1])


def test_options_that_a_command_lacks_keep_their_defaults():
    args = Namespace(out="runs/a", features=None, label_smoothing=0.2, augment=["flip"],
                     captions_each=2)
    options = CaptionOptions.from_args(args)
    assert options == CaptionOptions(Path("runs/a/features"), 0.2, ["flip"], 2, "xe", 5, 0.0)
    args.features, args.samples = "elsewhere", 3
    assert CaptionOptions.from_args(args).features == "elsewhere"
    assert CaptionOptions.from_args(args).samples == 3


@pytest.fixture(scope="module")
def captioner():
    return add_cross_attention(tiny_base()).eval()


def test_images_with_fewer_captions_weigh_by_their_tokens(captioner):
    references = References(captioner, [["a red", "green square"], ["a blue"]])
    rows = references.of(torch.tensor([1, 0]), torch.device("cpu"))
    assert rows.shape[0] == 4 and (rows[1] == -100).all()
    assert [row[row >= 0].tolist()[:-1] for row in rows[[0, 2, 3]]] == [
        captioner.tokenizer.encode(text) for text in ("a blue", "a red", "green square")]


def test_self_critical_loss_reinforces_what_beat_the_other_samples(captioner):
    features = torch.randn(2, 4, captioner.encoder.embed_dim)
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = sample(captioner, captioner.memory_of(features), 3).tolist()
    texts = [captioner.tokenizer.decode(row) for row in drawn]
    references = References(captioner, [[texts[0]], [texts[4]]])  # so that some captions earn much
    loss_of = self_critical_loss(
        references, 3, Search(), lambda captioner, images: captioner.memory_of(images))
    torch.manual_seed(1)
    loss, numbers = loss_of(captioner, (features, torch.tensor([0, 1])))
    reward, end = references.reward(), captioner.tokenizer.end_id
    rewards = [reward(number // 3, tokenize_all([text]))[0] for number, text in enumerate(texts)]
    total, tokens = 0.0, 0
    for number, row in enumerate(drawn):
        image = number // 3
        row = row[:row.index(end) + 1] if end in row else row
        memory = captioner.memory_of(features[image:image + 1])
        logits = captioner(memory, torch.tensor([[captioner.tokenizer.start_id, *row[:-1]]]))
        log_p = logits[0].log_softmax(-1)[range(len(row)), row].sum()
        earned = rewards[3 * image:3 * image + 3]
        advantage = rewards[number] - (sum(earned) - rewards[number]) / 2
        total, tokens = total - advantage * log_p, tokens + len(row)
    assert max(rewards) > 1
    assert loss.item() == pytest.approx((total / tokens).item(), abs=1e-5)
    assert numbers == {"reward": pytest.approx(np.mean(rewards))}
