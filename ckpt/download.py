"""Fetches and verifies the checkpoints that ckpt/checkpoints.json lists.

  bash download_ckpt.sh                what the shell scripts use by default
  bash download_ckpt.sh NAME …         these entries of the list; --all: every one, many GB
  bash download_ckpt.sh --list         what there is, how large, under which licence, and what for
  bash download_ckpt.sh --check        compare what is here with the list; fetches nothing
  bash download_ckpt.sh --record FILE  write a checkpoint of yours into the list

A file is fetched over https into ckpt/fetched/. A transfer that breaks off is tried again and goes
on where it stopped, also in the next run. The file must have the size and SHA-256 of the list;
where that has none, those of the first file that came, if it is a checkpoint, are written into
ckpt/checkpoints.lock.json, and later files are compared with them (commit it for everybody). Models
of the Hugging Face hub go into its own cache, where transformers and timm look. What is here and
matches the list is not fetched again.

To publish a checkpoint of yours, put it where anyone can fetch it, then

  bash download_ckpt.sh --record runs/mine/best.safetensors --name mine --url https://… --default p1

and commit ckpt/checkpoints.json: `bash download_ckpt.sh` now fetches it, and hw3_1.sh uses it. A
file in ckpt/ needs no --url: it comes with the code. Several files, with as many --name and --url,
are an ensemble as the default of p1. --needs names entries that are fetched with the file, such as
the weights of a PEFT captioner's encoder. HW3_P1_CKPT (A:B for an ensemble), HW3_P2_CKPT and
HW3_CLIP_CKPT, where set, name a file to use instead of the defaults.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Container
from pathlib import Path

from utils import EXIT_ERROR, EXIT_INTERRUPTED, ArgumentParser, UserError, one_line, printable, warn

from ckpt import registry
from ckpt.content import sha256_of
from ckpt.publish import add
from ckpt.registry import Entry
from ckpt.transfer import Unreachable, check_space, fetch, one_at_a_time

# --- files --------------------------------------------------------------------------------------


def fetch_file(entry: Entry, insecure: bool) -> str:
    """Fetch the file of ``entry`` unless it is here and as listed; returns what was done."""
    path = entry.path
    matches, said = check_file(entry)
    if matches and registry.expected(entry)[1]:
        return said
    with one_at_a_time(path.with_name(f".{path.name}.lock"), path.name):
        matches, said = check_file(entry)  # another process may have fetched it meanwhile
        if not matches:
            if matches is False:
                warn(f"{path} is not as listed; fetching it again")
            fetch(entry.url, path, *registry.expected(entry), insecure, registry.source_of(entry))
            said = f"wrote {path}"
        if registry.expected(entry)[1] is None:
            sha256 = sha256_of(path)
            with one_at_a_time(registry.FOLDER / ".lock", "another file"):
                registry.record(entry, path.stat().st_size, sha256)
            said += f"; later files are compared with its SHA-256, {sha256}"
    return said


def check_file(entry: Entry) -> tuple[bool | None, str]:
    """(whether the file of ``entry`` is as listed, None where it is not here; what to say of it)"""
    path = entry.path
    if not path.exists():
        return None, "is not here"
    problem = registry.problem_with(entry)
    if problem:
        remedy = (f"git checkout -- ckpt/{entry.file} restores it" if entry.shipped else
                  f"bash download_ckpt.sh {entry.name} fetches it again")
        return False, f"is not as listed ({problem}); {remedy}"
    if registry.expected(entry)[1] is None:
        return True, f"is here: {path} (no SHA-256 of it is known)"
    return True, f"matches the list: {path}"


# --- models of the hub --------------------------------------------------------------------------


def fetch_model(entry: Entry) -> str:
    """Fetch the files of ``entry`` into the hub's cache unless they are there and whole."""
    whole, said = check_model(entry)
    if whole:
        return said
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of its retries
    try:
        info = HfApi().model_info(entry.hub, revision=entry.revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings}
        names = [name for wanted in entry.files if (name := choose(wanted, sizes, entry))]
        cache, needed = Path(constants.HF_HUB_CACHE), sum(sizes[name] for name in names)
        cache.mkdir(parents=True, exist_ok=True)
        check_space(cache, needed, entry.name)
        folder = snapshot_download(entry.hub, revision=entry.revision, allow_patterns=names,
                                   force_download=whole is False)
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise UserError(f"the hub does not give {entry.hub}: {one_line(error)[:200]}") from None
    except Exception as error:  # the hub and what it is built on raise anything
        if isinstance(error, OSError) and error.errno:  # of this machine's disk
            raise
        raise Unreachable(one_line(error)[:200]) from None
    return f"wrote {folder}"


def choose(wanted: str, names: Container[str], entry: Entry) -> str | None:
    """Of "a|b" the first in ``names``; None for "a|" where there is no a. Else UserError."""
    alternatives = wanted.split("|")
    found = next((name for name in alternatives if name in names), None)
    if found is None and "" not in alternatives:
        raise UserError(f"{entry.hub} has no {' nor '.join(alternatives)}; correct \"files\" of "
                        f"{entry.name} in {registry.list_path()}")
    return found


def cached_files(entry: Entry) -> list[Path]:
    """The files of ``entry`` in the hub's cache; none where one that it needs is missing."""
    from huggingface_hub import try_to_load_from_cache

    files = []
    for alternatives in (wanted.split("|") for wanted in entry.files):
        try:
            found = [try_to_load_from_cache(entry.hub, name, revision=entry.revision)
                     for name in filter(None, alternatives)]
        except ValueError as error:
            raise UserError(f"{entry.hub} is no name on the hub: {one_line(error)}") from None
        found = [Path(path) for path in found if isinstance(path, str)]
        if not found and "" not in alternatives:
            return []
        files += found
    return files


def check_model(entry: Entry) -> tuple[bool | None, str]:
    """As ``check_file``, of a model in the hub's cache."""
    files = cached_files(entry)
    if not files:
        return None, "is not here"
    damaged = [path for path in files if not hash_matches_name(path)]
    if damaged:
        return False, (f"is damaged ({damaged[0]}); bash download_ckpt.sh {entry.name} fetches it "
                       "again")
    return True, f"is whole: {files[0].parent}"


def hash_matches_name(path: Path) -> bool:
    """Whether the file that ``path`` in the hub's cache links to has the hash that it is named by,
    SHA-256 where it is large and git's where it is small. True where there is no such link."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    if len(name) == 64:
        return sha256_of(path) == name
    if len(name) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == name
    return True


# --- commands -----------------------------------------------------------------------------------


def download(args) -> int:
    entries, defaults = registry.read_list()
    names = args.names or (entries if args.all else itertools.chain(*defaults.values()))
    failed, unreachable = [], {}
    for name in registry.with_needs(entries, names):
        try:
            entry = registry.find(entries, name)
            if entry.hub:
                said = fetch_model(entry)
            elif entry.url:
                said = fetch_file(entry, args.insecure)
            else:
                matches, said = check_file(entry)
                if not matches:
                    raise UserError(said)
            warn(f"{name}: {said}")
        except Unreachable as error:
            unreachable[name] = error
        except (UserError, OSError) as error:
            warn(f"error: {name}: {error}")
            failed.append(name)
    if unreachable:
        warn(f"error: not available now: {', '.join(unreachable)} "
             f"({next(iter(unreachable.values()))}); try again when there is a network. The "
             f"checkpoints that ship in {registry.FOLDER} still work")
    elif not args.names and not args.all:
        warn(f"{len(entries)} are listed: bash download_ckpt.sh --list")
    return EXIT_ERROR if failed or unreachable else 0


def check(args) -> int:
    """Say of each entry whether it is as listed. It is an error where one is not, or where one that
    ships or was named is not here."""
    entries, _ = registry.read_list()
    status = 0
    for name in args.names or entries:
        try:
            entry = registry.find(entries, name)
            matches, said = check_model(entry) if entry.hub else check_file(entry)
            if matches is False or matches is None and (entry.shipped or args.names):
                status = EXIT_ERROR
        except (UserError, OSError) as error:
            said, status = f"error: {error}", EXIT_ERROR
        print(printable(one_line(f"{name}: {said}")))
    return status


def show(args) -> int:
    entries, defaults = registry.read_list()
    status = 0
    for name in args.names or entries:
        try:
            entry = registry.find(entries, name)
        except UserError as error:
            warn(f"error: {error}")
            status = EXIT_ERROR
            continue
        here = bool(cached_files(entry)) if entry.hub else entry.path.exists()
        size = entry.hub is None and registry.expected(entry)[0]
        facts = [("ships" if entry.shipped else "here") if here else "not here",
                 *([f"{size / 1e6:,.1f} MB"] if size else []),
                 *(f"default of {key}" for key, used in defaults.items() if name in used)]
        print(printable(f"{name} ({', '.join(facts)})\n    {entry.use or 'use not stated'}\n"
                        f"    from {entry.url or entry.hub or 'this project'}\n"
                        f"    licence: {entry.licence or 'not stated'}"))
    return status


# --- command line -------------------------------------------------------------------------------


def parse_args(argv):
    parser = ArgumentParser(prog="download_ckpt.sh", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="entries of the list (default: what the shell scripts use)")
    command = parser.add_mutually_exclusive_group()
    command.add_argument("--all", action="store_true", help="fetch every entry, many GB")
    command.add_argument("--list", action="store_true", help="show what there is")
    command.add_argument("--check", action="store_true",
                         help="compare what is here with the list; fetches nothing")
    command.add_argument("--record", nargs="+", metavar="FILE",
                         help="write each FILE's size and SHA-256 into the list")
    parser.add_argument("--insecure", action="store_true", help="also fetch what is not https")
    recorded = parser.add_argument_group("with --record")
    recorded.add_argument("--name", nargs="+",
                          help="of each entry (default: FILE's, without its extension)")
    recorded.add_argument("--url", nargs="+",
                          help="where each FILE can be fetched (default: it ships in ckpt/)")
    recorded.add_argument("--needs", nargs="+", metavar="NAME",
                          help="entries that are fetched with it")
    recorded.add_argument("--default", choices=list(registry.SHIPPED),
                          help="make it what this entry point uses: p1 hw3_1.sh IMAGES OUT.csv "
                               "(several files: an ensemble), clip hw3_1.sh with names, p2 "
                               "hw3_2.sh, p2_peft hw3_2.sh with a decoder")
    recorded.add_argument("--licence", metavar="TEXT", help="of FILE and what it was made of")
    recorded.add_argument("--use", metavar="TEXT", help="what it is for")
    args = parser.parse_args(argv)
    if args.names and (args.all or args.record):
        parser.error(f"NAME does not go with {'--all' if args.all else '--record'}")
    if not args.record and any((args.name, args.url, args.needs, args.default, args.licence,
                                args.use)):
        parser.error("--name, --url, --needs, --default, --licence and --use go with --record FILE")
    for option in ("name", "url"):
        values = getattr(args, option)
        if values and len(values) != len(args.record):
            parser.error(f"--{option} takes as many values as --record has files, "
                         f"{len(args.record)}, not {len(values)}")
    return args


def main(argv=None):
    """What download_ckpt.sh runs; it puts the project's folder on Python's path."""
    args = parse_args(argv)
    command = add if args.record else show if args.list else check if args.check else download
    try:
        return command(args)
    except KeyboardInterrupt:
        warn("interrupted; what came so far is kept, and the same command goes on from there")
        return EXIT_INTERRUPTED
