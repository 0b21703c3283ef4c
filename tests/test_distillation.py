"""Learning from teachers: losses against formulas, what teachers see, and trainings as a user runs
them."""

from __future__ import annotations

import csv
import shutil
from functools import partial

from utils import UserError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CLASSES,
    TINY,
    error_lines,
    make_folder,
    make_photo,
    run_inside,
    write_classifier,
)
from PIL import Image

import p1_vit_classify
from data.compute import Compute
from models.checkpoint import read_tensors
from models.classifier import Classifier, load_classifier
from training.distillation import (
    UNLABELLED,
    Teacher,
    distillation_losses,
    label_losses,
    loss_with_teachers,
    open_teachers,
    prepare_with_teachers,
    soft_targets,
    split_weight,
    view_of,
)

COMPUTE = Compute("cpu", "fp32", 8)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def random(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Fixed(torch.nn.Module):
    """A model that answers the same to every image; it keeps what it has seen."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.as_tensor(logits)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        return self.logits[:len(images)]


def classifier_of(model, size=(8, 8), mean=0.5, std=0.5) -> Classifier:
    fields = {"size": size, "mean": (mean,) * 3, "std": (std,) * 3}
    return Classifier(model, fields, CLASSES, {}, {}, {})


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_distillation_loss_is_the_divergence_times_t_squared(temperature):
    logits, theirs = random(5, 3).numpy(), random(5, 3, seed=1).numpy()
    p, q = softmax(theirs / temperature), softmax(logits / temperature)
    expected = temperature ** 2 * (p * np.log(p / q)).sum(1)
    student = torch.tensor(logits, requires_grad=True)
    losses = distillation_losses(student, torch.tensor(p), temperature)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    losses.sum().backward()  # Hinton et al. 2015, Eq. 2, times T squared
    np.testing.assert_allclose(student.grad.numpy(), temperature * (q - p), rtol=1e-4, atol=1e-6)


def test_the_distillation_loss_is_zero_where_all_agree():
    logits = random(4, 3) * 30  # probabilities of 0 among them
    assert distillation_losses(logits, logits.softmax(1), 1.0).abs().max() < 1e-5
    sure = torch.eye(3)
    assert torch.isfinite(distillation_losses(random(3, 3), sure, 2.0)).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("prior", [None, torch.tensor([0.7, 0.2, 0.1]).log()])
def test_label_losses_are_those_without_teachers(smoothing, prior):
    logits, labels = random(4, 3), torch.tensor([0, 2, 1, 1])
    rows = F.one_hot(labels, 3).float()
    adjusted = logits if prior is None else logits + prior
    expected = F.cross_entropy(adjusted, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(label_losses(logits, rows, prior, smoothing), expected)
    halves = label_losses(logits, 0.5 * rows, prior, smoothing)
    torch.testing.assert_close(halves, expected / 2)
    assert (label_losses(logits, 0 * rows, prior, smoothing) == 0).all()


def test_labelled_and_unlabelled_photos_weigh_as_told():
    logits, targets = random(3, 3), random(3, 3, seed=1).softmax(1)
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0.3, 0]])  # labelled, not, for 0.3
    of_label, of_teacher = (label_losses(logits, labels, None, 0.1),
                            distillation_losses(logits, targets, 2.0))
    value, numbers = loss_with_teachers(None, 0.1, 2.0, weight=0.4)(
        Fixed(logits), (torch.zeros(3, 3, 8, 8), labels, targets))
    expected = [0.6 * of_label[0] + 0.4 * of_teacher[0], of_teacher[1],
                0.6 * of_label[2] + (0.3 * 0.4 + 0.7) * of_teacher[2]]
    torch.testing.assert_close(value, sum(expected) / 3)
    assert numbers["distill_loss"] == pytest.approx(of_teacher.mean().item())
    assert numbers["agreement"] == pytest.approx(
        (logits.argmax(1) == targets.argmax(1)).float().mean().item())
    assert numbers["accuracy"] == (float(logits[0].argmax() == 0), 1)


def test_a_batch_without_labels_has_a_loss_and_no_accuracy():
    batch = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    value, numbers = loss_with_teachers(None, 0.1, 1.0, 0.5)(Fixed(random(2, 3)), batch)
    assert torch.isfinite(value) and numbers["accuracy"] == (0.0, 0)


# --- what teachers see ----------------------------------------------------------------------------


def test_a_teacher_of_the_same_input_sees_the_same_crop():
    student = classifier_of(None).transform
    images = student.normalize(torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8))
    torch.testing.assert_close(view_of(images, student, student), images)


def test_a_teacher_sees_the_crop_in_its_own_size_and_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    student = classifier_of(None, (16, 24), 0.2, 0.3).transform
    teacher = classifier_of(None, (8, 12), 0.6, 0.1).transform
    view = view_of(student.normalize(torch.from_numpy(pixels)[None]), student, teacher)
    small = Image.fromarray(pixels).resize((12, 8), Image.Resampling.BICUBIC)
    theirs = teacher.normalize(torch.from_numpy(np.array(small))[None])
    assert view.shape == (1, 3, 8, 12)
    assert (view - theirs).abs().max() < 1.1 / 255 / 0.1  # Pillow rounds to whole levels


def test_targets_are_the_weighted_mean_of_softened_probabilities():
    student = classifier_of(None).transform
    models = [Fixed(random(2, 3, seed=seed)) for seed in range(2)]
    teachers = [Teacher("x", classifier_of(model, size), share, "") for model, size, share in zip(
        models, ((8, 8), (4, 4)), (0.25, 0.75), strict=True)]
    targets = soft_targets(teachers, torch.zeros(2, 3, 8, 8), student, 3.0, COMPUTE)
    expected = sum(share * softmax(model.logits.numpy() / 3) for model, share in zip(
        models, (0.25, 0.75), strict=True))
    np.testing.assert_allclose(targets.numpy(), expected, rtol=1e-5)
    assert [model.seen[0].shape[2:] for model in models] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_teacher_and_student_see_the_same_mixed_photos(mixup):
    torch.manual_seed(0)
    model = Fixed(random(3, 3))
    student = classifier_of(None, (8, 8), 0.5, 0.25)
    teacher = Teacher("x", classifier_of(model, (8, 8), 0.1, 0.5), 1.0, "")
    pixels = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    images, labels, targets = prepare_with_teachers(student, [teacher], mixup, 1.0, COMPUTE)(
        [pixels, torch.tensor([1, UNLABELLED, 0])])
    torch.testing.assert_close(model.seen[0] * 0.5 + 0.1, images * 0.25 + 0.5)
    shares = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]])
    plain = student.transform.normalize(pixels)
    if mixup:
        ratio = labels[0, 1].item()  # the first photo is mixed with the last
        assert 0 < ratio < 1
        shares = ratio * shares + (1 - ratio) * shares.roll(1, 0)
        plain = ratio * plain + (1 - ratio) * plain.roll(1, 0)
    torch.testing.assert_close(labels, shares)
    torch.testing.assert_close(images, plain)
    value, _ = loss_with_teachers(None, 0.1, 1.0, 0.5)(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), (images, labels, targets))
    value.backward()  # targets made in inference mode can be learned from


def test_teachers_run_in_evaluation_mode_without_gradients(tmp_path):
    file = write_classifier(tmp_path / "a.safetensors", model="test_resnet", image_size=32)
    teacher, = open_teachers([str(file)], CLASSES)
    before = {key: value.clone() for key, value in teacher.classifier.model.state_dict().items()}
    student = classifier_of(None, (64, 64)).transform
    images = random(2, 3, 64, 64)
    targets = soft_targets([teacher], images, student, 1.0, COMPUTE)
    assert not targets.requires_grad
    with torch.no_grad():
        view = view_of(images, student, teacher.classifier.transform)
        torch.testing.assert_close(targets, load_classifier(file).model(view).softmax(1))
    after = teacher.classifier.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_weights_of_teachers(tmp_path):
    assert split_weight("a.safetensors") == ("a.safetensors", 1.0)
    assert split_weight("a=b.safetensors") == ("a=b.safetensors", 1.0)
    assert split_weight("a=b.safetensors=2.5") == ("a=b.safetensors", 2.5)
    odd = write_classifier(tmp_path / "epoch=3")
    assert split_weight(str(odd)) == (str(odd), 1.0)
    for word in ("a=0", "a=-1", "a=nan", "a=inf"):
        with pytest.raises(UserError, match="the weight must be a number above 0"):
            split_weight(word)
    file = write_classifier(tmp_path / "a.safetensors")
    shares = [teacher.share for teacher in open_teachers([f"{file}=3", str(file)], CLASSES)]
    assert shares == [0.75, 0.25]


# --- as a user runs it ----------------------------------------------------------------------------


@pytest.fixture
def here(capsys):
    return partial(run_inside, p1_vit_classify, capsys=capsys)


def words_of(folder, **changes) -> list[str]:
    """The words of a training in ``folder``; ``changes`` by option, None to leave one out."""
    options = {"train": [folder / "photos"], "val": [folder / "val"], "out": [folder / "out"],
               "model": [TINY], "image-size": [32], "epochs": [1], "batch-size": [4],
               "workers": [0], "device": ["cpu"], "precision": ["fp32"], "mixup": [0.2],
               "teacher": [folder / "vit.safetensors", f"{folder / 'resnet.safetensors'}=2"],
               "unlabelled": [folder / "more", folder / "others"]}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ["train", *(str(word) for name, words in options.items() if words is not None
                       for word in (f"--{name}", *words))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished training in ``out``, and what it was made from."""
    folder = tmp_path_factory.mktemp("trained")
    make_folder(folder / "photos", 2)
    make_folder(folder / "val", 1, seed=1)
    for number in range(4):
        make_photo(folder / "more" / f"photo{number}.png", number)
        make_photo(folder / "others" / f"photo{number}.png", number, seed=2)
    write_classifier(folder / "vit.safetensors", image_size=48)
    write_classifier(folder / "resnet.safetensors", model="test_resnet", image_size=64)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("sys.argv", ["p1_vit_classify.py", *words_of(folder)])
        p1_vit_classify.run(p1_vit_classify.main)
    assert end.value.code == 0
    return folder


def test_history_and_checkpoint_tell_of_the_teachers(trained):
    with open(trained / "out" / "history.csv") as file:
        row, = csv.DictReader(file)
    assert float(row["train_distill_loss"]) > 0 and 0 <= float(row["train_agreement"]) <= 1
    assert 0 <= float(row["train_accuracy"]) <= 1 and int(row["val_images"]) == 3
    metadata = load_classifier(trained / "out" / "last.safetensors").metadata
    assert [(teacher["file"], teacher["share"]) for teacher in metadata["teachers"]] == [
        ("vit.safetensors", 1 / 3), ("resnet.safetensors", 2 / 3)]
    digests = [teacher.digest for teacher in open_teachers(
        [str(trained / name) for name in ("vit.safetensors", "resnet.safetensors")], CLASSES)]
    assert [teacher["digest"] for teacher in metadata["teachers"]] == digests
    assert metadata["trained_on"] == {"folder": "photos", "images": 6, "unlabelled": 8}
    recipe = metadata["recipe"]
    assert (recipe["distill_temperature"], recipe["distill_weight"]) == (1.0, 0.5)
    assert recipe["unlabelled"] == ["more", "others"]
    assert recipe["teacher"] == ["vit.safetensors", "resnet.safetensors=2"]


def test_accuracy_is_that_of_labelled_photos_alone(trained, tmp_path, here):
    result = here(*words_of(
        trained, out=[tmp_path], mixup=None, augment=["none"], lr=[0], batch_size=[3], val=None,
        teacher=[trained / "resnet.safetensors"], weights=[trained / "vit.safetensors"]))
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "history.csv") as file:
        row, = csv.DictReader(file)
    student = tmp_path / "last.safetensors"
    evaluated = here("eval", "--images", trained / "photos", "--checkpoint", student, "--device",
                     "cpu", "--precision", "fp32")
    assert f'"accuracy": {float(row["train_accuracy"])}'[:18] in evaluated.stdout


def test_a_student_that_is_its_teacher_agrees_with_it(trained, tmp_path, here):
    result = here(*words_of(
        trained, out=[tmp_path], lr=[0], image_size=[48], teacher=[trained / "vit.safetensors"],
        weights=[trained / "vit.safetensors"], distill_temperature=[2]))
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "history.csv") as file:
        row, = csv.DictReader(file)
    assert float(row["train_agreement"]) == 1
    assert float(row["train_distill_loss"]) == pytest.approx(0, abs=1e-4)


def test_a_student_learns_what_photos_without_labels_show(tmp_path, here):
    photos = make_folder(tmp_path / "photos", 1)
    unlabelled = make_folder(tmp_path / "more", 12, seed=3)
    val = make_folder(tmp_path / "val", 4, seed=1)
    common = ["--model", TINY, "--image-size", "32", "--batch-size", "8", "--lr", "1e-3",
              "--augment", "flip", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
    here("train", "--train", unlabelled, "--out", tmp_path / "teacher", "--epochs", "6", *common)
    result = here("train", "--train", photos, "--val", val, "--out", tmp_path / "student", "--seed",
                  "1", "--epochs", "8", "--teacher", tmp_path / "teacher" / "last.safetensors",
                  "--unlabelled", unlabelled, "--distill-weight", "1", *common)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "student" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val_accuracy"]) == 1 and float(rows[-1]["train_agreement"]) > 0.9
    assert float(rows[-1]["train_distill_loss"]) < float(rows[0]["train_distill_loss"]) / 2


@pytest.mark.parametrize("changes, setting, before, now", [
    ({"distill_weight": [0.7]}, "--distill-weight", "0.5", "0.7"),
    ({"distill_temperature": [2]}, "--distill-temperature", "1.0", "2.0"),
    ({"teacher": ["vit.safetensors", "resnet.safetensors"]}, "teacher checkpoints", "", ""),
    ({"teacher": ["vit.safetensors"]}, "teacher checkpoints", "", ""),
    ({"teacher": ["vit.safetensors", "other.safetensors=2"]}, "teacher checkpoints", "", ""),
    ({"unlabelled": ["more"]}, "unlabelled photos", "8 (digest ", "4 (digest "),
    ({"unlabelled": None}, "unlabelled photos", "8 (digest ", "0 (digest "),
])
def test_a_resume_with_other_teachers_or_photos_is_refused(
        trained, here, changes, setting, before, now):
    write_classifier(trained / "other.safetensors", model="test_resnet", image_size=64, seed=5)
    changes = {name: value and [trained / word if name in ("teacher", "unlabelled") else word
                                for word in value] for name, value in changes.items()}
    result = here(*words_of(trained, **changes), "--resume")
    line, = error_lines(result)
    found = line.partition("it was trained with ")[2].partition(";")[0]
    assert found.startswith(f"{setting} {before}") and f", not {now}" in found, line
    without = words_of(trained, teacher=None, unlabelled=None)
    assert "it was trained with --distill-temperature 1.0, not None" in here(
        *without, "--resume").stderr


def test_a_resume_may_find_the_teachers_elsewhere(trained, tmp_path, here):
    shutil.copytree(trained, tmp_path / "moved")
    result = here(*words_of(tmp_path / "moved"), "--resume")
    assert result.returncode == 0 and "after epoch 1" in result.stderr, result.stderr


@pytest.mark.parametrize("changes, status, message", [
    ({"teacher": None, "unlabelled": None, "distill_weight": [0.5]}, 2,
     "--distill-weight needs --teacher"),
    ({"teacher": None, "unlabelled": None, "distill_temperature": [1]}, 2,
     "--distill-temperature needs --teacher"),
    ({"teacher": None}, 2, "--unlabelled needs --teacher"),
    ({"distill_temperature": [0]}, 2, "--distill-temperature: must be a number above 0, not 0"),
    ({"distill_temperature": ["inf"]}, 2, "--distill-temperature: must be a number above 0"),
    ({"distill_weight": [1.5]}, 2, "--distill-weight: must be a number above 0 and at most 1"),
    ({"teacher": []}, 2, "--teacher"),
    ({"teacher": ["gone.safetensors"]}, 1, "checkpoint gone.safetensors does not exist"),
    ({"teacher": ["gone.safetensors=0"]}, 1, "the weight must be a number above 0"),
    ({"teacher": ["swapped.safetensors"]}, 1,
     "the teacher swapped.safetensors has 3 labels, the training photos have 3; they must be the"),
    ({"unlabelled": ["nowhere"]}, 1, "image folder nowhere does not exist"),
    ({"unlabelled": ["empty"]}, 1, "no image in empty"),
    ({"unlabelled": ["bad"]}, 1, "bad/x.jpg cannot be read: not an image"),
])
def test_bad_input_gets_one_line(trained, tmp_path, here, monkeypatch, changes, status, message):
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "swapped.safetensors", classes=["1", "0", "2"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_text("text")
    result = here(*words_of(trained, out=["fresh"], **changes))
    line, = error_lines(result)
    assert result.returncode == status and message in line, line
    assert not (tmp_path / "fresh").exists()


def test_a_sweep_may_compare_teachers(trained, tmp_path, here):
    words = words_of(trained, out=[tmp_path / "out"], teacher=None, unlabelled=None)[1:]
    files = f"{trained / 'vit.safetensors'}+{trained / 'resnet.safetensors'}=2"
    result = here("sweep", *words, "--unlabelled", trained / "more", "--vary",
                  f"teacher={trained / 'vit.safetensors'},{files}")
    assert result.returncode == 0, result.stderr
    runs = sorted((tmp_path / "out").glob("*/last.safetensors"))
    assert sorted(len(read_tensors(run)[1]["teachers"]) for run in runs) == [1, 2]
    refused = here("sweep", *words, "--vary", "distill-weight=0.1,0.2")
    assert refused.returncode == 2 and "--distill-weight needs --teacher" in refused.stderr
