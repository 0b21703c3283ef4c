"""What the bytes of a checkpoint file say: whether it can be one, and its SHA-256."""

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path


def problem_with_content(path: Path, suffix: str) -> str | None:
    """Why a file cannot be a checkpoint, or another file, with the extension ``suffix``, by the way
    it begins, such as "is a web page"; None where it can be."""
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not head:
        return "is an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<?xml")):
        return "is a web page"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git-LFS pointer, not the file itself"
    if suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return "is not JSON"
    header = int.from_bytes(head[:8], "little")
    safetensors = head[8:9] == b"{" and header <= path.stat().st_size - 8
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    archive = head.startswith(b"PK\3\4") or head[257:262] == b"ustar"
    if suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and not (
            safetensors or suffix != ".safetensors" and (pickled or archive)):
        return "is not a checkpoint"
    return None


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()
