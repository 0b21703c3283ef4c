"""Files that stand behind names: on the disk, in the hub's cache, or on the hub itself."""

from __future__ import annotations

import re
from pathlib import Path

from utils import UserError, one_line, read_json, warn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as transformers and timm name them
DESCRIBED = ("config.json", "preprocessor_config.json")
PREFIXES = ("hf:", "hf-hub:", "hf_hub:", "https://huggingface.co/", "huggingface.co/")


def local_file(source: str | Path) -> Path | None:
    """The file behind ``--model``: itself, the weights in a folder, or those of ``hf:owner/name``,
    fetched unless they are in the hub's cache; also a file that is missing, where no model can be
    called so. None for what is no file, so a name to look up."""
    path, name = Path(source), hub_name(str(source))
    if name is not None:
        return _from_hub(name)
    if path.is_dir():
        import timm

        named = _named_weights(path)
        return named[0] if named else None if timm.is_model(str(source)) else weights_in(path)
    in_a_folder = path.is_absolute() or path.parent != Path() and path.parent.is_dir()
    return path if path.is_file() or path.suffix in SUFFIXES or in_a_folder else None


def hub_name(source: str) -> str | None:
    """``owner/name`` on the hub, where ``source`` says so: after a prefix in use, as an address, or
    bare, where no file, no folder and no model of OpenAI's (``ViT-B/32``) is meant."""
    name = without_prefix(source)
    if name != source:
        return name
    path = Path(source)
    if (re.fullmatch(r"[\w.-]+/[\w.-]*[A-Za-z][\w.-]*", source) and path.suffix not in SUFFIXES
            and not path.parent.exists()):
        warn(f"{source} is no file or folder here, and is looked for on the hub, hf:{source}")
        return source
    return None


def without_prefix(source: str) -> str:
    """``owner/name`` of ``hf:owner/name``, ``hf-hub:…`` or an address; another text as it is."""
    for prefix in PREFIXES:
        if source.startswith(prefix):
            return "/".join(source.removeprefix(prefix).split("/")[:2])
    return source


def weights_in(folder: Path) -> Path:
    """The file with weights in a folder; UserError that says what is there where none is meant."""
    others = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()]
    named = _named_weights(folder) or (others if len(others) == 1 else [])
    if named:
        return named[0]
    names = sorted(path.name for path in folder.iterdir())
    parts = [name for name in names if name.endswith(".index.json")]
    if parts:
        raise UserError(f"{folder} holds weights in several parts ({parts[0]}): save the model as "
                        "one file, save_pretrained(FOLDER, max_shard_size='50GB')")
    raise UserError(f"{folder} is a folder with neither {' nor '.join(WEIGHTS)} in it, nor one "
                    f"other file with weights: it has {', '.join(names[:5]) or 'nothing'}"
                    f"{', …' * (len(names) > 5)}; give the file")


def _named_weights(folder: Path) -> list[Path]:
    return [folder / name for name in WEIGHTS if (folder / name).is_file()]


def beside(path: str | Path, name: str) -> dict:
    """The JSON object ``name`` in the folder of ``path``; {} where there is none."""
    file = Path(path).parent / name
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object")
    return content


def _from_hub(name: str) -> Path:
    """The weights of a repository on the hub; its JSON files lie beside them in the cache."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        for weights in WEIGHTS:
            cached = [try_to_load_from_cache(name, file) for file in (weights, *DESCRIBED)]
            if all(isinstance(file, str) for file in cached):
                return Path(cached[0])
        go_offline_without_network()
        for weights in WEIGHTS:
            folder = snapshot_download(name, allow_patterns=[weights, *DESCRIBED])
            if Path(folder, weights).is_file():
                return Path(folder, weights)
    except LocalEntryNotFoundError:
        raise UserError(f"could not fetch hf:{name} (no network?), and it is not in the hub's "
                        "cache; give a file") from None
    except Exception as error:  # the hub raises anything
        raise UserError(f"could not fetch hf:{name}: {one_line(error)[:200]}; give a file"
                        ) from None
    raise UserError(f"hf:{name} has no {' or '.join(WEIGHTS)}; give a file")


def go_offline_without_network() -> None:
    """Ask the hub once whether it is there; where it is not, its libraries use their caches alone
    from now on, instead of trying each file six times over half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:  # whatever goes wrong on the way there
            constants.HF_HUB_OFFLINE = True
