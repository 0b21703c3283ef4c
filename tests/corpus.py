"""Checkpoint files that were damaged, lied in, or made to do harm; and what becomes of each.

  python tests/corpus.py FOLDER     one JSON line a file: its name, and how opening it ended

A process of its own, because a reader may crash. Each file is opened by the function that a user's
command would open its kind with, and what opens is used once.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

from utils import UserError

import numpy as np
import torch
from conftest import CLASSES, TINY, write_classifier
from PIL import Image
from safetensors.torch import save_file

from data.transform import Transform
from models.captioner_files import load_captioner, save_captioner
from models.checkpoint import read_tensors, save_checkpoint
from models.classifier import build_classifier, load_classifier
from models.clip import build_clip, load_clip, save_clip
from models.decoding import generate
from models.gpt2 import GPT2, GPT2Config
from models.tokenizer import train_bpe
from models.vit import build_vit
from models.vit_gpt2 import add_cross_attention, build_captioner, gpt2_base

PHOTO = Image.new("RGB", (40, 30), "red")
WRONG = (-1, 0, 3, 10**6, 10**12, 2**63, 1e308, float("nan"), "", "../x", None, True, [], {}, [-1],
        [10**9, 10**9], {"a": 1})

# --- sound files, and how each is opened --------------------------------------------------------


def write_sound_files(folder: Path) -> None:
    """One checkpoint of each kind, and each kind of foreign state dict."""
    write_classifier(folder / "classifier.safetensors", drop_path=0.1)
    write_classifier(folder / "convnet.safetensors", model="test_resnet")
    tokenizer = train_bpe(["a dog runs", "two men talking"], 300)
    config = GPT2Config(tokenizer.vocab_size, 8, 16, 2, 2, cross_width=None)
    save_captioner(folder / "captioner.safetensors",
                   add_cross_attention(build_captioner(TINY, config, tokenizer)),
                   about="random weights")
    save_clip(folder / "clip.safetensors",
              build_clip(TINY, config, tokenizer, width=12, img_size=32))
    weights = read_tensors(folder / "classifier.safetensors")[0]
    torch.save(weights, folder / "weights.pth")
    torch.save(weights, folder / "weights.bin", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "weights.safetensors")
    decoder = {key: tensor.t().contiguous() if key.startswith("h.") and tensor.ndim == 2
               else tensor for key, tensor in GPT2(config).state_dict().items()}
    torch.save(decoder, folder / "gpt2.pth")
    for theirs, ours in zip(tokenizer.backend.model.save(str(folder)),
                            ("encoder.json", "vocab.bpe"), strict=True):
        Path(theirs).rename(folder / ours)


def open_and_use(kind: str, path: Path) -> None:
    """Open a file of a kind, and use what it holds once."""
    if kind == "weights":
        build_classifier(TINY, CLASSES, image_size=32, weights=path)
        return
    if kind == "gpt2":
        gpt2_base(build_vit(TINY), path)
        return
    load = {"captioner": load_captioner, "clip": load_clip}.get(kind, load_classifier)
    model = load(path)
    transform = Transform.from_fields(model.preprocessing)
    photo = transform(PHOTO)
    with torch.inference_mode():
        images = transform.normalize(torch.from_numpy(photo.copy())[None])
        if kind in ("classifier", "convnet"):
            chances = model.model(images).softmax(1)[0]
            name = model.name_of(model.classes[int(chances.argmax())]).replace("_", " ")
            assert isinstance(name, str)  # a lie may have made it empty
        elif kind == "captioner":
            model.tokenizer.encode(model.tokenizer.decode(generate(model, model.encode(images))[0]))
        else:
            model(images, torch.tensor([model.ids(["a dog"])[0]]))


DAMAGE = ("flipped", "cut", "lost", "zeroed", "twice", "longer", "later", "length")

# --- damage -------------------------------------------------------------------------------------


def damaged(content: bytes, random: np.random.Generator):
    """Endless (how, bytes that differ in place or None, content): what disks, networks and editors
    do to files."""
    while True:
        for first in (len(content), 400):  # anywhere, and in the header
            flipped = bytearray(content)
            for place in random.integers(0, first, random.integers(1, 5)):
                flipped[place] ^= 1 << random.integers(8)
            yield "flipped", bytes(flipped)
        start, stop = sorted(random.integers(0, len(content), 2).tolist())
        yield "cut", content[:stop]
        yield "lost", content[:start] + content[stop:]
        yield "zeroed", content[:start] + bytes(stop - start) + content[stop:]
        yield "twice", content[:stop] + content[start:]
        yield "longer", content + random.bytes(100)
        yield "later", random.bytes(int(random.integers(1, 64))) + content
        yield "noise", random.bytes(int(random.integers(1, 4000)))
        number = random.choice([0, 7, len(content), 2**31, 2**62, 2**63], 1)[0]
        yield "length", struct.pack("<Q", int(number)) + content[8:]


# --- lies ---------------------------------------------------------------------------------------


def places(value, path=()):
    """Every path into nested JSON; of a vocabulary, it as a whole."""
    if path:
        yield path
    if path[-1:] in (("vocab",), ("merges",), ("about",)):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def lied_about(tensors: dict, metadata: dict, file: Path, random: np.random.Generator):
    """Endless contents of checkpoints whose description was changed in one place."""
    metadata = copy.deepcopy(metadata)
    if "tokenizer" in metadata:
        metadata["tokenizer"] = json.loads(metadata["tokenizer"])
    paths = list(places(metadata))
    while True:
        lie = copy.deepcopy(metadata)
        *way, last = paths[random.integers(len(paths))]
        place = lie
        for key in way:
            place = place[key]
        how = random.integers(4)
        if how == 0:
            del place[last]
        elif how == 1 and isinstance(place[last], str):
            place[last] = place[last][:random.integers(len(place[last]) + 1)]
        else:
            place[last] = WRONG[random.integers(len(WRONG))]
        if isinstance(lie.get("tokenizer"), dict):
            lie["tokenizer"] = json.dumps(lie["tokenizer"])
        save_checkpoint(file, tensors, lie)
        yield "lie", file.read_bytes()


def with_arguments(tensors: dict, metadata: dict, file: Path, evil: Path):
    """Arguments that timm or a builder would act on, and a tokenizer that makes its library panic.
    """
    key = next(key for key in ("model", "encoder", "vision") if key in metadata)
    for name, value in {"checkpoint_path": str(evil), "weights": str(evil), "pretrained": True,
                        "depth": 10**9, "embed_dim": 10**9, "img_size": 10**6, "num_classes": 10**9,
                        "pretrained_cfg_overlay": {"file": str(evil)}}.items():
        lie = copy.deepcopy(metadata)
        lie[key]["args"][name] = value
        save_checkpoint(file, tensors, lie)
        yield "argument", file.read_bytes()
    if "tokenizer" in metadata:
        tokenizer = json.loads(metadata["tokenizer"])
        tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": ""}, "content": " "}
        save_checkpoint(file, tensors, {**metadata, "tokenizer": json.dumps(tokenizer)})
        yield "tokenizer", file.read_bytes()
    for decoder in filter(metadata.get, ("decoder", "text")):
        for name in ("layers", "width", "vocab_size", "max_length", "heads"):
            lie = copy.deepcopy(metadata)
            lie[decoder][name] = 10**9
            save_checkpoint(file, tensors, lie)
            yield "size", file.read_bytes()


def odd_tensors(tensors: dict):
    """State dicts that hold something else than the right tensors under the right names."""
    name = next(name for name in tensors if tensors[name].ndim == 2)
    tensor = tensors[name]
    half = dict(list(tensors.items())[::2])
    for content in (
            tensors | {name: tensor.to(torch.int16)}, tensors | {name: tensor.to(torch.complex64)},
            tensors | {name: torch.zeros(1, 1).expand(10**6, 10**6)},
            tensors | {name: torch.zeros(()).expand(tensor.shape)},
            tensors | {name: tensor.float().to_sparse()}, tensors | {name: tensor.to("meta")},
            tensors | {name: tensor[:1]}, tensors | {name: tensor[None]}, tensors | {name: None},
            tensors | {name: "text"}, tensors | {name: {"a": tensor}}, tensors | {7: tensor},
            tensors | {b"bytes": tensor}, tensors | {("a", 1): tensor}, tensors | {"": tensor},
            tensors | {"h.99999999999.attn.c_attn.weight": tensor}, half, {}, [], tensor, None,
            [tensors], "text", 7, {"a": {"b": [tensor]}}, list(tensors.values()),
            tensors | {"pos_embed": torch.zeros(3)}, tensors | {"pos_embed": torch.zeros(0, 0, 0)},
            tensors | {"wte.weight": torch.zeros(5)}, torch.nn.Linear(2, 2),
            tensors | {name: torch.quantize_per_tensor(torch.zeros(4, 4), 1.0, 0, torch.qint8)}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        yield "odd", buffer.getvalue()


def with_nan(content: bytes):
    """A .safetensors file with one NaN in each of three tensors, one at a time."""
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    places = {name: entry["data_offsets"] for name, entry in header.items()
              if name != "__metadata__" and entry["dtype"] in ("F16", "F32")}
    for name in list(places)[::max(len(places) // 3, 1)][:3]:
        place = start + places[name][0]
        yield "nan", content[:place] + b"\xff" * 4 + content[place + 4:]


# --- harm ---------------------------------------------------------------------------------------


class Harm:
    """Calls ``function`` where it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(tensors: dict, marker: Path):
    """Files that write ``marker`` in a reader that runs what pickles say."""
    text = f"open({str(marker)!r}, 'w')"
    payloads = (Harm(os.system, f"touch '{marker}'"), Harm(eval, text), Harm(exec, text),
                Harm(open, str(marker), "w"), Harm(Path.touch, marker), Harm(os.mkdir, str(marker)),
                Harm(pickle.loads, pickle.dumps(Harm(open, str(marker), "w"))))
    for payload in payloads:
        for content in (tensors | {"w": payload}, {payload.call[0].__name__: payload}):
            for new in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=new)
                yield "harm", buffer.getvalue()
        yield "harm", pickle.dumps(payload, protocol=0)
        yield "harm", pickle.dumps(payload, protocol=4)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payloads[0]) + bytes(10**7))
        archive.writestr("archive/version", "3")
    yield "bomb", bomb.getvalue()


# --- the corpus ---------------------------------------------------------------------------------


def corpus(sound: Path, marker: Path):
    """Yield (kind, name, content of one file); the same in every run."""
    scratch = sound / "scratch.safetensors"
    evil = sound / "evil.pth"
    torch.save({"w": Harm(open, str(marker), "w")}, evil)
    for file, count in (("classifier.safetensors", 20), ("captioner.safetensors", 20),
                        ("clip.safetensors", 10), ("weights.pth", 10), ("weights.bin", 10),
                        ("weights.safetensors", 10), ("gpt2.pth", 20)):
        kind, suffix = file.split(".")
        content = (sound / file).read_bytes()
        for (how, changed), _ in zip(damaged(content, np.random.default_rng(len(file))),
                                     range(count), strict=False):
            yield kind, f"{how}.{suffix}", changed
    for file in sorted(sound.glob("[cw]*.safetensors")):
        for how, changed in with_nan(file.read_bytes()):
            yield file.stem, f"{how}.safetensors", changed
    for kind, count in (("classifier", 20), ("convnet", 20), ("captioner", 10), ("clip", 5)):
        tensors, metadata = read_tensors(sound / f"{kind}.safetensors")
        for (how, changed), _ in zip(lied_about(tensors, metadata, scratch,
                                                np.random.default_rng(count)),
                                     range(count), strict=False):
            yield kind, f"{how}.safetensors", changed
        for how, changed in with_arguments(tensors, metadata, scratch, evil):
            yield kind, f"{how}.safetensors", changed
    tensors = read_tensors(sound / "weights.pth")[0]
    for how, changed in list(odd_tensors(tensors))[::4]:
        yield "weights", f"{how}.pth", changed
    for how, changed in odd_tensors(read_tensors(sound / "gpt2.pth")[0]):
        yield "gpt2", f"{how}.bin", changed
    for how, changed in harmful(tensors, marker):
        yield "gpt2", f"{how}.pth", changed
    for suffix in ("pth", "safetensors"):  # each under the other's name
        for file in ("weights.pth", "weights.bin", "weights.safetensors"):
            yield "weights", f"named.{suffix}", (sound / file).read_bytes()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def wrong_bytes(path: Path, sound: Path) -> int:
    """How many more bytes of the tensors in ``path`` differ from the ``sound`` file's than bytes of
    the files do, where these are of one length; if not, how many differ at all."""
    ours, theirs = read_tensors(path)[0], read_tensors(sound)[0]
    assert list(ours) == list(theirs)
    changed = sum(int((as_bytes(ours[name]) != as_bytes(theirs[name])).sum()) for name in ours)
    files = [np.fromfile(file, np.uint8) for file in (path, sound)]
    same_length = len(files[0]) == len(files[1])
    return max(changed - (int((files[0] != files[1]).sum()) if same_length else 0), 0)


def outcome(kind: str, path: Path) -> dict:
    """How opening a file ended: "opened", "refused", or what should not have happened."""
    signal.setitimer(signal.ITIMER_PROF, 20)  # of processor time: the machine may be busy
    try:
        open_and_use(kind, path)
        return {"outcome": "opened"}
    except UserError as error:
        return {"outcome": "refused", "message": str(error)}
    except BaseException as error:  # Rust's panics are no Exception
        return {"outcome": type(error).__name__, "message": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    sound, files = folder / "sound", folder / "files"
    for made in (sound, files):
        made.mkdir()
    write_sound_files(sound)
    for name in ("encoder.json", "vocab.bpe"):
        (files / name).write_bytes((sound / name).read_bytes())
    # A description that got through would take the machine's memory: it shall fail here instead.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
    for number, (kind, name, content) in enumerate(corpus(sound, folder / "marker")):
        path = files / f"{number:03}_{kind}_{name}"
        path.write_bytes(content)
        started = time.process_time()
        row = {"file": path.name, **outcome(kind, path)}
        source = sound / f"{kind}{path.suffix}"
        if row["outcome"] == "opened" and path.stem.rpartition("_")[2] in DAMAGE:
            row["wrong_bytes"] = wrong_bytes(path, source)
        row["seconds"] = round(time.process_time() - started, 3)
        row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(json.dumps(row), flush=True)
        path.unlink()


def _stop(*_):
    raise TimeoutError


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, _stop)
    main(Path(sys.argv[1]))
