"""Files that stand behind names: on the disk, in the hub's cache, or on the hub itself."""

from __future__ import annotations

from pathlib import Path

from utils import UserError, one_line

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as transformers and timm name them
DESCRIBED = ("config.json", "preprocessor_config.json")


def local_file(source: str | Path) -> Path | None:
    """The file behind ``--model``: itself, the weights in a folder, or those of ``hf:owner/name``,
    fetched unless they are in the hub's cache. None for what is no file, so a name to look up."""
    path = Path(source)
    if str(source).startswith("hf:"):
        return _from_hub(str(source).removeprefix("hf:"))
    in_folder = [path / name for name in WEIGHTS if (path / name).is_file()]
    if in_folder or path.is_file() or path.suffix in SUFFIXES:
        return in_folder[0] if in_folder else path
    return None


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
