"""Checkpoints of one's own in ckpt/checkpoints.json: what ``download_ckpt.sh --record`` writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils import UserError, warn

from ckpt import registry
from ckpt.content import problem_with_content, sha256_of
from ckpt.transfer import check_url


def add(args: argparse.Namespace) -> int:
    """Write sizes and SHA-256 of files into the list, and which entry point uses them."""
    entries, defaults = registry.read_list()
    names = args.name or [Path(file).stem for file in args.record]
    if len(set(names)) < len(names):
        raise UserError(f"two entries would have one name ({', '.join(names)}); give a --name to "
                        "each file")
    for file, name, url in zip(args.record, names, args.url or [None] * len(names), strict=True):
        entries[name] = described(Path(file), name, url, entries.get(name, {}), args)
    for name in registry.with_needs(entries, names):
        registry.find(entries, name)  # as it will be read
    if args.default:
        registry.check_default(args.default, names)
        defaults[args.default] = names
    registry.write_list(entries, defaults)
    warn(f"wrote {', '.join(names)} into {registry.list_path()}; commit it")
    return 0


def described(
    file: Path, name: str, url: str | None, before: dict, args: argparse.Namespace
) -> dict:
    """The entry ``name`` of ``file``; what is not given stays as ``before``."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; --record takes a checkpoint file")
    wrong = problem_with_content(file, file.suffix)
    if wrong:
        raise UserError(f"{file} {wrong}; --record takes a checkpoint file")
    url = url or before.get("url")
    if url:
        check_url(url, args.insecure)
        where = {"url": url, "file": before.get("file") or name + file.suffix}
    elif file.resolve().parent == registry.FOLDER.resolve():
        where = {"shipped": True, "file": file.name}
    else:
        raise UserError(f"{file} is not in {registry.FOLDER}: put it there and it comes with "
                        "the code, or give --url, where it can be fetched")
    needs = args.needs or before.get("needs")
    return {"name": name, **where, "size": file.stat().st_size, "sha256": sha256_of(file),
            "licence": args.licence or before.get("licence"),
            "use": args.use or before.get("use"), **({"needs": needs} if needs else {})}
