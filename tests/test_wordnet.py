"""WordNet's files, ImageNet's nouns in them, and what nouns inherit."""

from __future__ import annotations

from utils import UserError

import numpy as np
import pytest

from data.wordnet import (
    imagenet_nouns,
    mentioned,
    name_meanings,
    noun_vectors,
    read_frequencies,
    read_name_vectors,
    read_nouns,
)

LICENCE = "  1 This software and database is being provided\n"
NOUNS = LICENCE + """\
00000001 03 n 01 entity 0 000 | that which exists
00000002 05 n 01 animal 0 001 @ 00000001 n 0000 | a living organism
00000003 05 n 02 bear 0 Ursus 0 002 @ 00000002 n 0000 ~ 00000004 n 0000 | massive mammal
00000004 05 n 01 brown_bear 0 001 @ 00000003 n 0000 | large ferocious bear
00000005 05 n 01 ice_bear 0 001 @ 00000003 n 0000 | white bear
00000006 05 n 01 crane 0 001 @ 00000002 n 0000 | large wading bird
00000007 06 n 01 crane 0 001 @ 00000001 n 0000 | lifts heavy objects
00000008 05 n 01 sun_bear 0 001 @ 00000003 n 0000 | small tropical bear
00000009 07 n 01 idea 0 000 | the content of thinking
"""
SENSES = LICENCE + """\
crane%1:05:00:: 00000006 1 4
crane%1:06:00:: 00000007 2 0
crane%2:38:00:: 02031898 1 2
brown_bear%1:05:00:: 00000004 1 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "index.sense").write_text(SENSES)
    return tmp_path


def test_nouns_keep_names_gloss_and_hypernyms(folder):
    nouns = read_nouns(folder)
    assert nouns[3].names == ("bear", "ursus") and nouns[3].gloss == "massive mammal"
    assert nouns[3].hypernyms == (2,) and nouns[1].hypernyms == ()
    assert nouns[4].names == ("brown bear",)
    assert read_frequencies(folder) == {("crane", 6): 4, ("crane", 7): 0, ("brown bear", 4): 3}


def test_a_gloss_tells_nouns_of_one_name_apart(folder):
    nouns = read_nouns(folder)
    assert imagenet_nouns(nouns, [
        "crane: lifts and moves heavy objects", "crane: large long-necked wading bird",
        "brown bear, bruin: large ferocious bear"]) == [7, 6, 4]
    with pytest.raises(UserError, match="has no noun zebra"):
        imagenet_nouns(nouns, ["zebra: striped"])


def test_nouns_inherit_from_below_and_else_from_above(folder):
    vectors = noun_vectors(read_nouns(folder), [4, 5, 6], np.eye(3))
    half = 0.5**0.5
    assert np.allclose(vectors[4][0], [1, 0, 0]) and vectors[4][1] == 0
    assert np.allclose(vectors[3][0], [half, half, 0])  # the mean of both bears
    assert np.allclose(vectors[8][0], vectors[3][0]) and vectors[8][1] == 1  # as any bear
    assert np.allclose(vectors[2][0], np.full(3, 3**-0.5))
    assert 9 not in vectors  # it has no hypernym and no hyponym
    few = noun_vectors(read_nouns(folder), [4, 5, 6], np.eye(3), most_classes=2)
    assert 1 not in few and 7 not in few  # the hypernyms of the crane are too general


def test_a_name_means_first_what_a_picture_would_show(folder):
    nouns, frequencies = read_nouns(folder), read_frequencies(folder)
    eye = np.eye(4)
    vectors = {6: (eye[0], 0), 7: (eye[1], 2), 8: (eye[2], 1), 9: (eye[3], 4)}
    meanings = name_meanings(nouns, frequencies, vectors)
    assert set(meanings) == {"crane", "sun bear"}  # an idea is too far from what has a vector
    crane = np.array([1, 0.2 * 0.05, 0, 0])  # the machine is never meant in tagged text
    np.testing.assert_allclose(meanings["crane"].vector, crane / np.linalg.norm(crane))
    assert (meanings["crane"].steps, meanings["crane"].used) == (0, True)
    assert (meanings["sun bear"].steps, meanings["sun bear"].used) == (1, False)


def test_names_are_found_in_sentences():
    names = {"bear", "brown bear", "bus", "glasses"}
    assert mentioned("Two brown bears on a bus.", names) == {"bear", "brown bear", "bus"}
    assert mentioned("Bearded men with glasses", names) == {"glasses"}


def test_a_missing_file_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match="--wordnet takes WordNet's folder"):
        read_nouns(tmp_path)


def test_name_vectors_become_unit_vectors_under_plain_names(tmp_path):
    names, vectors = np.array(["Sea_Monster", "tench"]), np.array([[3, 4], [0, 2]])
    np.savez(tmp_path / "v.npz", names=names, vectors=vectors)
    found = read_name_vectors(tmp_path / "v.npz")
    assert list(found) == ["sea monster", "tench"]
    np.testing.assert_allclose(list(found.values()), [[0.6, 0.8], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("arrays, message", [
    ({"names": ["Sea_Monster", "sea monster"], "vectors": np.ones((2, 4))},
     "two vectors for the name sea monster"),
    ({"names": ["a"], "vectors": np.full((1, 4), np.nan)}, "finite numbers"),
    ({"names": ["a"], "vectors": np.ones((2, 4))}, "must be an .npz file"),
    ({"names": ["a"], "vectors": np.ones(1)}, "must be an .npz file"),
    ({"names": [b"a"], "vectors": np.ones((1, 4))}, "must be an .npz file"),
    ({"names": np.array(["a"], dtype=object), "vectors": np.ones((1, 4))}, "must be an .npz file"),
    ({"names": ["a"]}, "must be an .npz file"),
])
def test_other_name_vectors_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_name_vectors(tmp_path / "v.npz")
    with pytest.raises(UserError, match="cannot read"):
        read_name_vectors(tmp_path / "gone.npz")
