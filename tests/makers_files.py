"""Files that tests of several areas write."""

from __future__ import annotations

import json
from pathlib import Path


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def coco(captions: dict[str, list[str]]) -> dict:
    """COCO's caption format of {file name: captions}."""
    annotations = [{"caption": caption, "image_id": image} for image, texts
                   in enumerate(captions.values()) for caption in texts]
    return {"info": "", "licenses": "", "images": [
        {"file_name": name, "id": image} for image, name in enumerate(captions)],
        "annotations": [{**row, "id": number} for number, row in enumerate(annotations)]}
