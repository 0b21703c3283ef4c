"""The sentences that the report derives from numbers: each rule on numbers by hand. And the answers
that read a file whose name a command gave."""

from __future__ import annotations

import numpy as np
import pytest

from report import map_observations as maps
from report import observations as of
from report import words as word_sections
from report.section import Measured, count, listed, names_of_models, percent, with_interval

A, B, C = (Measured("A", 0.6, 0.5, 0.7), Measured("B", 0.4, 0.3, 0.55),
           Measured("C", 0.2, 0.1, 0.3))


def test_numbers_are_written_alike():
    assert percent(0.9153) == "91.5 %" and count(1, "photo") == "1 photo"
    assert with_interval(0.9, (0.8, 0.95), percent) == "90.0 % (80.0 - 95.0 %)"
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"


def test_no_more_than_four_sentences_are_said():
    assert of.said(None, "a", "b", None, "c", "d", "e") == ["a", "b", "c", "d"]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, said, unsaid", [
    ([A, B], "overlaps with that of B: the intervals alone do not tell them apart", "above"),
    ([C, A], "lies above that of C", "overlaps"),
    ([A, B, C], "lies above that of C", "lies above those"),
])
def test_settings_are_told_apart_by_their_intervals(rows, said, unsaid):
    text = of.told_apart(rows)
    assert text.startswith("A has the highest value, 0.600 (0.500 - 0.700).")
    assert said in text and unsaid not in text


def test_one_setting_is_not_compared():
    assert of.told_apart([A]) is None and of.best_of([A]) is None and of.best_of([C, A, B]) == 1


def test_paired_differences():
    far = of.paired("A", "B", ([1.0, 1.1, 0.9, 1.0] * 5, [0.1, 0.0, 0.1, 0.0] * 5), "CIDEr")
    assert "CIDEr of A minus that of B is +0.950" in far and "does not contain 0" in far
    near = of.paired("A", "B", ([1.0, 0.0] * 10, [0.0, 1.0] * 10), "CIDEr")
    assert "is +0.000" in near and "contains 0: the difference may be chance" in near
    assert of.paired("A", "B", ([1.0, np.nan] * 15, [0.0, 0.5] * 15), "CIDEr") is None


def test_two_classifiers_on_the_same_photos():
    counts = {"only_first_right": 1, "only_second_right": 12}
    far = of.same_photos("A", "B", counts | {"difference": -0.025, "difference_95": [-0.04, -0.01],
                                             "mcnemar_p": 0.0034})
    assert far == ("A alone is right on 1 photo, B alone on 12. The first minus the second is -2.5 "
                   "points (-4.0 to -1.0), and McNemar's exact test gives p = 0.0034: the "
                   "difference is more than chance explains.")
    near = of.same_photos("A", "B", counts | {"difference": 0, "difference_95": [-0.01, 0.01],
                                              "mcnemar_p": 1.0})
    assert "p = 1: the difference may be chance" in near


@pytest.mark.parametrize("chance, said", [
    (0.3, "more often than by chance"), (0.5, "the interval contains chance"),
    (0.9, "less often than by chance")])
def test_pointing(chance, said):
    rows = [{"map": name, "hits": hits, "maps": 20, "share": hits / 20, "chance": chance,
             "share_95": [hits / 20 - 0.1, hits / 20 + 0.1]}
            for name, hits in (("last", 2), ("rollout", 9), ("relevance", 10))]
    text = maps.pointing(rows)
    assert text.startswith("relevance peaks inside a box most often, on 10 of 20 maps, 50.0 % "
                           f"(40.0 - 60.0 %); by chance it would be {percent(chance)}: {said}.")
    assert text.endswith("Its interval overlaps with that of rollout.")
    assert "overlaps" not in maps.pointing(rows[:1] + rows[2:])


def test_few_photos_and_wide_intervals():
    assert of.few_photos(409, 447, (0.885, 0.937)) is None
    assert "3 of 5 photos right: the interval is 65 points" in of.few_photos(3, 5, (0.231, 0.882))
    assert of.wide_interval(Measured("", 0.584, 0.544, 0.624), "CIDEr", 1000) is None
    assert "On 5 photos" in of.wide_interval(Measured("", 0.66, 0.28, 1.13), "CIDEr", 5)


@pytest.mark.parametrize("row, said", [
    (Measured("", 0.96, 0.945, 0.975), "lies above the course's threshold of 94.0 %"),
    (Measured("", 0.915, 0.885, 0.937), "contains the course's threshold of 90.0 %"),
    (Measured("", 0.80, 0.75, 0.85), "lies below the course's threshold of 90.0 %")])
def test_thresholds(row, said):
    assert said in of.threshold(row, (0.90, 0.94), percent)


def test_classes_are_named_where_they_have_enough_photos():
    rows = {"0": {"name": "cat", "correct": 5, "total": 5},
            "1": {"name": "dog", "correct": 3, "total": 6},
            "2": {"name": "cow", "correct": 0, "total": 1}}
    assert of.classes(rows) == ("1 of 2 classes have no error; the lowest accuracy is that of dog, "
                                "3 of 6.")
    rows["1"]["correct"] = 6
    assert of.classes(rows) == "All 2 classes have no error."
    assert of.classes({"2": rows["2"]}) is None


def test_balance():
    uneven = {"0": {"total": 3}, "1": {"total": 3}, "2": {"total": 9}}
    assert "3 classes alike gives 81.0 %, less than a point" in of.balance(0.805, 0.81, uneven)
    assert "70.0 % instead of 90.0 %: classes with few photos" in of.balance(0.9, 0.7, uneven)
    assert "with many photos do worse" in of.balance(0.7, 0.9, uneven)
    even = dict.fromkeys("012", {"total": 3})  # nothing can be observed
    assert of.balance(0.8, 0.8, even) is None and of.balance(1, 0, {"0": {"total": 5}}) is None


def test_true_probability():
    assert "0.693 nats" in of.true_probability(0.6931) and "50.0 %" in of.true_probability(0.6931)


def test_overfitting():
    assert "largest for A: 90.0 % against 50.0 %" in of.overfitting(
        [("A", 0.9, 0.5), ("B", 0.5, 0.4)])
    assert "In no setting" in of.overfitting([("A", 0.5, 0.45)])
    assert of.overfitting([]) is None


# --- positions and maps -------------------------------------------------------------------------


@pytest.mark.parametrize("row, column, said", [
    (0.5, 0.4, "tells rows and columns apart"), (0.5, 0.0, "tells rows apart"),
    (0.0, 0.0, "neither rows nor columns")])
def test_rows_and_columns(row, column, said):
    numbers = {"same_row": row, "same_column": column, "elsewhere": -0.05}
    assert said in maps.rows_and_columns(numbers)
    assert maps.rows_and_columns(numbers | {"same_row": None}) is None


def test_by_distance():
    assert maps.by_distance({"1": 0.9, "2": 0.1, "3": 0.4}).endswith(
        "at a distance of 2; at the largest distance, 3, it is 0.40 again.")
    assert "again" not in maps.by_distance({"1": 0.9, "2": 0.2, "3": 0.1})
    assert maps.by_distance({"1": 0.9}) is None


def grids(*bright: tuple[int, int]) -> np.ndarray:
    """A map of 6 x 6 for each place, which has half of it."""
    found = np.full((len(bright), 6, 6), 0.5 / 35)
    for grid, place in zip(found, bright, strict=True):
        grid[place] = 0.5
    return found


def test_corners_and_peaks():
    assert "The corners are bright" in maps.corners(grids((0, 0), (5, 5)))
    assert "do not stand out" in maps.corners(grids((2, 2)))
    assert "On 1 of 2 photos the peak of last" in maps.peaks_inside(grids((2, 3), (0, 3)), "last")
    everywhere = np.eye(196).reshape(196, 14, 14)  # a peak in each patch: the share is chance
    assert "On 64 of 196 photos" in maps.peaks_inside(everywhere, "last")
    assert "has 32.7 % of the patches" in maps.peaks_inside(everywhere, "last")


def test_spread_and_agreement():
    assert "4.0 bits on average, as if the attention were shared evenly by 16 of the 36" in (
        maps.spread_of_maps([3.0, 5.0], 36))
    rising = np.arange(36.0).reshape(1, 6, 6)
    assert "100.0 % in common (8.3 % by chance)" in maps.agreement("a", "b", (rising, rising))
    assert "0.0 % in common" in maps.agreement("a", "b", (rising, -rising))


# --- words --------------------------------------------------------------------------------------


def words(text: str, share: float, peak=(0, 0)) -> list[dict]:
    return [{"word": word, "entropy_share": share, "peak": {"row": peak[0], "col": peak[1]}}
            for word in text.split()]


def test_words():
    content, function = words("dog cat cow sheep tree", 0.5), words("a of the in on", 0.9)
    assert 'sharpest map is that of "dog" (50.0 %' in maps.sharpest(content + function)
    assert "the maps of the others are sharper" in maps.function_words(content + function)
    assert "are more even" in maps.function_words(words("dog cat cow sheep tree", 0.9)
                                                  + words("a of the in on", 0.5))
    assert maps.function_words(content) is None and maps.sharpest(content[:1]) is None


def test_shared_peaks():
    assert "does not tell words apart" in maps.shared_peak([words("a b c", 1)])
    moving = [word for place in range(4) for word in words("a", 1, (0, place))]
    assert "moves from word to word" in maps.shared_peak([moving])
    assert maps.shared_peak([]) is None


def test_sharper():
    assert "sharper than" in maps.sharper([0.5], [0.7])
    assert "more even than" in maps.sharper([0.7], [0.5])
    assert "about as sharp as" in maps.sharper([0.7], [0.701]) and maps.sharper([], [1]) is None


# --- zero-shot and captions ---------------------------------------------------------------------


def test_negation():
    rows = [Measured('"a photo of {}"', 0.6, 0.5, 0.7), Measured('"not a {}"', 0.3, 0.2, 0.4),
            Measured('"No {}, no score."', 0.4, 0.3, 0.5)]
    assert of.negation(rows, 10).startswith('"No {}, no score." says')
    assert "hardly noticed" in of.negation(rows, 10) and "down to chance" in of.negation(rows, 3)
    assert of.negation(rows[:1], 10) is None


def test_known_names():
    def part(share, low, high):
        return {"accuracy": share, "accuracy_95": [low, high]}

    row = {"inside_imagenet": part(0.6, 0.55, 0.65), "outside_imagenet": part(0.5, 0.45, 0.54)}
    assert "do not overlap" in of.known_names(row)
    row["outside_imagenet"] = part(0.5, 0.45, 0.56)
    assert "the intervals overlap" in of.known_names(row)
    assert of.known_names({"inside_imagenet": row}) is None


def test_ranks_and_certainty():
    assert "likeliest one on 1 of 3 photos, and among the five likeliest on 2" in (
        of.ranks([1, None, 3]))
    rows = [("a.jpg", "cat", "dog", 0.9), ("b.jpg", "cow", "dog", 0.4), ("c.jpg", "x", "x", 1.0)]
    assert '"dog" with 90.0 % on a.jpg, which shows "cat"' in of.sure_and_wrong(rows)
    assert of.sure_and_wrong(rows[2:]) is None and of.ranks([]) is None
    assert "most certain on b" in of.surest([("a", "x", 0.2), ("b", "y", 0.9)])


def test_captions():
    reads = {"mean_words": 9.5, "distinct_captions": 4, "distinct_words": 30, "broken_off": 0.0}
    assert of.variety(reads, 5).endswith("30 different words; none breaks off.")
    assert "20.0 % break off" in of.variety(reads | {"broken_off": 0.2}, 5)
    assert "from 0.100 to 0.900, with a median of 0.500" in of.ranking([0.9, 0.5, 0.1])
    assert of.ranking([1.0, 0.5]) is None


def test_words_of_references():
    text = of.words_of_references("best", "two black dogs in the grass".split(),
                                  ["black horses on grass".split()])
    assert text == ('Of the 4 content words of the best caption, 2 stand in a reference; "two" and '
                    '"dogs" do not.')
    assert of.words_of_references("best", ["a"], [["a"]]) is None


def test_trained_parameters():
    assert "fewer than the 100 that" in of.trained([("a", 5), ("b", 99)], 100)
    assert "b trains 100 parameters, not fewer" in of.trained([("b", 100)], 100)
    assert of.trained([], 100) is None


def test_the_ranking_is_found_from_any_working_folder(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "ranking.csv").write_text("rank,filename,CLIPScore\n1,a.jpg,0.8\n2,b.jpg,0.5\n")
    parts = {kind: {"filename": name, "CLIPScore": score, "caption": "a dog",
                    "references": ["a cat"], "figure": f"{kind}.png",
                    "words": [{"entropy_share": 0.5}]}
             for kind, name, score in (("best", "a.jpg", 0.8), ("worst", "b.jpg", 0.5))}
    monkeypatch.setattr(word_sections, "ROOT", project)
    monkeypatch.chdir(elsewhere)

    answer = word_sections.best_worst_answer(
        None, project, [{"ranking": "ranking.csv", "clip": "c", **parts}])

    assert answer.result == "CLIPScore from 0.500 to 0.800"


def test_models_of_one_file_name_are_told_apart():
    assert names_of_models(["r/a.st", "r/b.st", "r/a.st"]) == ["a.st", "b.st", "a.st"]
    assert names_of_models(["r/a/best.st", "r/b/best.st"]) == ["a/best", "b/best"]


def test_a_negation_that_is_noticed():
    row = Measured('"No {}"', 0.01, 0.001, 0.02)
    assert "less than chance (10.0 %): the negation is noticed" in of.negation([row], 10)
