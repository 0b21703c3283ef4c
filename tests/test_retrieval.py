"""Recall@K against sorting by hand."""

import numpy as np

from metrics.retrieval import recall


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_recall_is_what_sorting_says():
    random = np.random.default_rng(0)
    images = unit(random.normal(size=(30, 4)))
    owner = random.permutation(np.repeat(np.arange(30), 3))
    texts = unit(images[owner] + 0.8 * random.normal(size=(90, 4)))
    found = recall(images, texts, owner, (1, 3))
    cosines = images @ texts.T
    for k in (1, 3):
        hits = [any(owner[text] == image for text in np.argsort(-cosines[image])[:k])
                for image in range(30)]
        assert found["image_to_text"][str(k)] == np.mean(hits)
        hits = [owner[text] in np.argsort(-cosines[:, text])[:k] for text in range(90)]
        assert found["text_to_image"][str(k)] == np.mean(hits)
    assert 0.1 < found["image_to_text"]["1"] < found["image_to_text"]["3"] < 1


def test_an_encoder_that_says_the_same_of_all_finds_nothing():
    same = np.ones((3, 2)) / 2 ** 0.5
    found = recall(same, same, np.arange(3), (1, 2, 3))
    assert found["text_to_image"] == {"1": 0.0, "2": 0.0, "3": 1.0}
    assert found["image_to_text"] == found["text_to_image"]


def test_copies_of_a_photo_are_as_near_as_it_is():
    rng = np.random.default_rng(0)
    image, text = unit(rng.normal(size=(1, 512))), unit(rng.normal(size=(1, 512)))
    images, texts = (np.repeat(row.astype(np.float32), count, 0)
                     for row, count in ((image, 50), (text, 250)))
    found = recall(images, texts, np.repeat(np.arange(50), 5), (1, 5))
    assert set(found["text_to_image"].values()) | set(found["image_to_text"].values()) == {0.0}
