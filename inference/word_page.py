"""The page of a captioner's attention: each word's map over the photo, in every layer and head.
Needs no torch to import."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils import printable

import numpy as np

from data.photos import load_image
from figures import page
from figures.maps import scale_top
from inference.words import word_maps, written_captions

if TYPE_CHECKING:
    from models.captioner import Captioner, Memory

Written = tuple[str, list[int]]  # a caption, and its ids with the end token


@contextlib.contextmanager
def word_page(
    args: argparse.Namespace, captioner: Captioner, photos: int
) -> Iterator[Callable[[list[tuple[Path, str, list[int]]], Memory], None]]:
    """Yield ``add(batch, memory)``, which puts each image of a batch, as (path, caption, its ids),
    onto the page ``args.html`` of ``photos`` images. Without ``args.html`` nothing is done.

    Captions of ``args.captions`` stand beside those that the captioner writes itself.
    """
    if args.html is None:
        yield lambda batch, memory: None
        return
    from models.decoding import Search

    about = {"layers": captioner.num_layers, "layer": args.layer % captioner.num_layers,
             "given": args.captions is not None}
    with page.html_page(args.html, "words", about) as write:
        def add(batch: list[tuple[Path, str, list[int]]], memory: Memory) -> None:
            for place, (path, *text) in enumerate(batch):
                one = replace(memory, features=memory.features[place:place + 1],
                              grids=memory.grids[place:place + 1],
                              mask=None if memory.mask is None else memory.mask[place:place + 1])
                captions = {"written by the model": text}
                if args.captions:
                    own, = written_captions(captioner, one, Search.from_args(args))
                    captions = {"given": text, "written by the model": own}
                write(*_word_record(captioner, path, captions, one, photos))

        yield add


def _word_record(
    captioner: Captioner, path: Path, captions: dict[str, Written], memory: Memory, photos: int
) -> tuple[dict, dict]:
    """(entry, record) of one image: the maps of each caption in each layer, as the mean of the
    heads, and of the single heads as far as the page has room, from the last layer on."""
    photo = load_image(path, (page.SIDE, page.SIDE))
    record = page.photo_record(photo, captioner.transform.box(*photo.size))
    record |= {"name": printable(path.name), "grid": list(memory.grids[0]), "captions": []}
    heads_of = []
    for source, (text, ids) in captions.items():
        layers, words = [], []
        for layer in range(captioner.num_layers):
            (words, heads), = word_maps(captioner, memory, [ids], layer)
            mean = heads.mean(0)
            layers.append({"mean": _packed(mean, scale_top(mean))})
            heads_of.append((layer, layers[-1], heads))
        record["captions"].append({"source": source, "text": text, "words": words,
                                   "layers": layers, "heads": len(heads)})
    each = max(heads.size for *_, heads in heads_of) * len(captions)
    kept = page.room_for(photos, record, each)
    for layer, maps, heads in heads_of:
        if layer >= captioner.num_layers - kept:
            maps["heads"] = [_packed(head, scale_top(heads)) for head in heads]
    return {"name": record["name"], "thumbnail": page.picture(photo, page.THUMBNAIL)}, record


def _packed(maps: np.ndarray, top: float) -> dict:
    return page.packed_maps(maps, top) | {"entropies": page.entropy_bits(maps)}
