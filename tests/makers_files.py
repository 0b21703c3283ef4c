"""Files that tests of several areas write."""

from __future__ import annotations

import json
from pathlib import Path


def write(path: Path, content) -> Path:
    """Write ``content`` as JSON, or as it is where it is text."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(captions: dict[str, list[str]]) -> dict:
    """COCO's caption format of {file name: captions}."""
    annotations = [{"caption": caption, "image_id": image} for image, texts
                   in enumerate(captions.values()) for caption in texts]
    return {"info": "", "licenses": "", "images": [
        {"file_name": name, "id": image} for image, name in enumerate(captions)],
        "annotations": [{**row, "id": number} for number, row in enumerate(annotations)]}


def in_cache(cache, name, *files):
    """``files`` as the hub's cache holds a repository's."""
    folder = cache / f"models--{name.replace('/', '--')}"
    for file in files:
        (folder / "snapshots" / "0").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / "0" / file.name).write_bytes(file.read_bytes())
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0")
