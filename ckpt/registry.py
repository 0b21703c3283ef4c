"""Which checkpoints there are, and which of them each entry point uses: ckpt/checkpoints.json.

An entry of its "checkpoints" has a "name" and one of

  "shipped": true      it lies in ckpt/ and comes with the code
  "url": "https://…"   a file, fetched into ckpt/fetched/
  "hub": "owner/name"  a model on the Hugging Face hub, fetched into the cache where transformers
                       and timm look: "files" of it ("a|b": the first that there is, "a|": if there
                       is one), at "revision"

and "file", its name in its folder; "size" and "sha256", null where nobody has published them: those
of the first file that came are then written into ckpt/checkpoints.lock.json, under its URL, and
later files are compared with them; "licence", and "use", what it is for; "needs", names of entries
that are fetched with it, such as the weights of a PEFT captioner's encoder. "defaults" names the
entry of each entry point; of p1 also a list of entries, which are an ensemble.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from utils import UserError, read_json, write_text

from ckpt.content import problem_with_content, sha256_of

FOLDER = Path(__file__).resolve().parent
BASE = FOLDER / "captioner_base.safetensors"  # what PEFT captioners of this project stand on
CLIP = FOLDER / "clip_vit_tiny.safetensors"  # what CLIPScore is computed with
SHIPPED = {"p1": "pets_vit_tiny.safetensors", "p2": "captioner.safetensors",
           "p2_peft": "flickr8k_peft.safetensors", "clip": "clip_vit_tiny.safetensors"}
VARIABLES = {"p1": "HW3_P1_CKPT", "p2": "HW3_P2_CKPT", "p2_peft": "HW3_P2_CKPT",
             "clip": "HW3_CLIP_CKPT"}
ENSEMBLES = ("p1",)  # entry points that take the mean of several checkpoints


@dataclass(frozen=True)
class Entry:
    """One checkpoint, as the module's docstring says."""

    name: str
    shipped: bool = False
    url: str | None = None
    hub: str | None = None
    file: str | None = None
    files: tuple[str, ...] = ()
    revision: str | None = None
    size: int | None = None
    sha256: str | None = None
    licence: str | None = None
    use: str | None = None
    needs: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where its file lies, or will lie."""
        return FOLDER / self.file if self.shipped else FOLDER / "fetched" / self.file


def default(key: str) -> Path:
    """The checkpoint that entry point ``key`` uses; of an ensemble the first."""
    return members(key)[0]


def members(key: str) -> list[Path]:
    """The checkpoints that entry point ``key`` (one of ``SHIPPED``) uses, one unless it is of
    ``ENSEMBLES``: those that its environment variable names, else the list's default, else the one
    that ships."""
    named = os.environ.get(VARIABLES[key])
    if named:
        return _named_files(key, named)
    entries, defaults = read_list()
    if key not in defaults:
        return [FOLDER / SHIPPED[key]]
    chosen = [find(entries, name) for name in defaults[key]]
    for entry in chosen:
        if entry.hub:
            raise UserError(f"{list_path()}: the default {key} is {entry.name}, a model on the "
                            "hub; it must be a checkpoint file")
    return [entry.path for entry in chosen]


def _named_files(key: str, named: str) -> list[Path]:
    """The files of an environment variable, ``A:B`` for an ensemble. A file whose name holds a
    colon is one file, and the colon of hf:owner/name separates nothing."""
    if key not in ENSEMBLES or Path(named).exists():
        return [Path(named)]
    files = [part for part in re.split("(?<!:hf):", f":{named}") if part]
    if not files:
        raise UserError(f"{VARIABLES[key]}={named} names no file; give a file, or several as A:B")
    return [Path(file) for file in files]


# --- the list -----------------------------------------------------------------------------------


def list_path() -> Path:
    return FOLDER / "checkpoints.json"


def read_list() -> tuple[dict[str, dict], dict[str, list[str]]]:
    """({name: what the list says of it}, {entry point: names of its default}), both empty where
    there is no list.

    Entries are not looked at, so that a bad one harms no other: ``find`` does.
    """
    path = list_path()
    if not path.exists():
        return {}, {}
    content = read_json(path)
    try:
        rows, defaults = list(content["checkpoints"]), dict(content["defaults"])
        names = [str(row["name"]) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path} must hold "checkpoints", a list of objects with a "name", and '
                        '"defaults"') from None
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} lists {twice[0]} twice")
    unknown = [key for key in defaults if key not in SHIPPED]
    if unknown:
        raise UserError(f"{path}: there is no default {unknown[0]}, only {', '.join(SHIPPED)}")
    chosen = {key: value if isinstance(value, list) else [value]
              for key, value in defaults.items()}
    for key, value in chosen.items():
        check_default(key, value)
    return dict(zip(names, rows, strict=True)), chosen


def check_default(key: str, names: list[str]) -> None:
    """UserError where entry point ``key`` cannot use so many checkpoints."""
    if not names or len(names) > 1 and key not in ENSEMBLES:
        raise UserError(f"{list_path()}: the default {key} names {len(names)} checkpoints; only "
                        f"{', '.join(ENSEMBLES)} takes several, and none takes 0")


def find(entries: dict[str, dict], name: str) -> Entry:
    """The entry called ``name``; UserError where there is none, or it is not as it should be."""
    if name not in entries:
        near = difflib.get_close_matches(str(name), entries, 3, 0.3) or list(entries)
        raise UserError(f"{list_path()} lists no {name}; it has {', '.join(near)}")
    where = f"{list_path()}, {name}"
    for key in ("files", "needs"):
        if not isinstance(entries[name].get(key) or [], list):
            raise UserError(f'{where}: "{key}" must be a list, ["…"]')
    try:
        entry = Entry(**entries[name])
        entry = replace(entry, files=tuple(entry.files), needs=tuple(entry.needs))
    except TypeError as error:
        raise UserError(f"{where}: {str(error).rpartition('() ')[2]}") from None
    texts = (entry.name, entry.url, entry.hub, entry.file, entry.revision, entry.sha256,
             entry.licence, entry.use, *entry.files, *entry.needs)
    if not all(text is None or isinstance(text, str) and text.isprintable() for text in texts):
        raise UserError(f"{where}: all but size and shipped must be text of one line")
    if [entry.shipped is True, bool(entry.url), bool(entry.hub)].count(True) != 1:
        raise UserError(f'{where}: give either "url", or "hub", or "shipped": true')
    if entry.hub:
        if not entry.files:
            raise UserError(f'{where}: "files" says which of the hub\'s files are needed')
        return entry
    file = _file_of(entries[name])
    # Nothing that leaves the folder, hides in it, or takes the place of what a transfer keeps.
    if not re.fullmatch(r"[^./\\][^/\\]*", file) or file.endswith((".part", ".part.json")):
        raise UserError(f'{where}: "{file}" is no plain file name; give another "file"')
    if not (entry.size is None or type(entry.size) is int and entry.size > 0):
        raise UserError(f"{where}: the size must be a number of bytes, or null")
    if not (entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)):
        raise UserError(f"{where}: sha256 must be 64 hexadecimal digits in lower case, or null")
    sharing = [other for other, row in entries.items() if other != name
               and bool(row.get("shipped")) == entry.shipped and _file_of(row) == file]
    if sharing:
        raise UserError(f"{where}: {sharing[0]} has the same file, {file}; give another")
    return replace(entry, file=file)


def _file_of(row: dict) -> str:
    """The name of a listed file: as given, else the last part of its URL."""
    return row.get("file") or unquote(urlsplit(str(row.get("url"))).path).rpartition("/")[2]


def is_shipped(key: str, path: str | Path) -> bool:
    """Whether ``path`` has the content of the shipped file of entry point ``key``."""
    path = Path(path)
    listed = [row for row in read_list()[0].values() if row.get("file") == SHIPPED[key]]
    return (bool(listed) and path.is_file() and path.stat().st_size == listed[0].get("size")
            and sha256_of(path) == listed[0].get("sha256"))


def with_needs(entries: dict[str, dict], names: Iterable[str]) -> list[str]:
    """``names``, each after the entries that it needs, and those that they need; none twice."""
    found: list[str] = []

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise UserError(f"{list_path()}: {name} needs itself")
        needs = entries.get(name, {}).get("needs")
        for needed in needs if isinstance(needs, list) else ():  # find refuses what is no list
            add(needed, (*above, name))
        if name not in found:
            found.append(name)

    for name in names:
        add(name, ())
    return found


def write_list(entries: dict[str, dict], defaults: dict[str, list[str]]) -> None:
    content = {"defaults": {key: names if len(names) > 1 else names[0]
                            for key, names in defaults.items()},
               "checkpoints": list(entries.values())}
    write_text(list_path(), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# --- sizes and hashes ---------------------------------------------------------------------------


def lock_path() -> Path:
    return FOLDER / "checkpoints.lock.json"


def read_recorded() -> dict[str, dict]:
    """{URL: {"size", "sha256"}} of what came first from there."""
    if not lock_path().exists():
        return {}
    recorded = read_json(lock_path())
    try:
        {url: (row["size"], row["sha256"]) for url, row in recorded.items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{lock_path()} is damaged; restore it, or remove it to trust what is "
                        "fetched next") from None
    return recorded


def record(entry: Entry, size: int, sha256: str) -> None:
    """Compare what ``entry``'s URL gives with this from now on."""
    recorded = read_recorded() | {entry.url: {"size": size, "sha256": sha256}}
    write_text(lock_path(), json.dumps(recorded, indent=2, sort_keys=True) + "\n")


def expected(entry: Entry) -> tuple[int | None, str | None]:
    """Size and SHA-256 that ``entry``'s file must have, as listed, else as recorded."""
    recorded = read_recorded().get(entry.url, {})
    if entry.sha256 is None:
        return entry.size or recorded.get("size"), recorded.get("sha256")
    return entry.size, entry.sha256


def source_of(entry: Entry) -> str:
    """Where ``expected`` has it from, and what to do where that is wrong."""
    if entry.sha256 is None and entry.url in read_recorded():
        return (f"{lock_path()} (written when the first file came; if the file was replaced on "
                f"purpose, take the entry {entry.url} out of it)")
    return "the list"


def problem_with(entry: Entry) -> str | None:
    """What is wrong with ``entry``'s file, which is there; None: nothing that can be known."""
    size, sha256 = expected(entry)
    found = entry.path.stat().st_size
    if size not in (None, found):
        return f"it has {found} bytes, {source_of(entry)} says {size}"
    if sha256 is None:
        wrong = problem_with_content(entry.path, entry.path.suffix)
        return wrong and f"it {wrong}"
    if sha256 != (actual := sha256_of(entry.path)):
        return f"its SHA-256 is {actual}, {source_of(entry)} says {sha256}"
    return None
