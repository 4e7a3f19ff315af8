"""Checkpoint folders on disk: finding them, reading their files with suspicion, writing them all or not at all.

Weights are safetensors, a header of names and shapes and then the numbers: nothing in them runs. Pickles
(`pytorch_model.bin`) run code when opened and are never opened here.

Next: `__init__.py`, which puts files, families and models together.
"""

import glob
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from clearhead.errors import CheckpointError, nearest
from clearhead.json_files import Kind, mapping_to, read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PLACED = mapping_to(Kind("the name of a file in this folder", lambda name: isinstance(name, str) and _is_name(name)))
DEFAULTS = Path(__file__).parent.parent / "defaults"

# What is fetched from the hub: no other framework's weights, no second precision, no code.
FETCHED = [CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors", "tokenizer.json", "tokenizer_config.json"]
FETCHED += ["special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"]
FETCHED += ["preprocessor_config.json", "generation_config.json", "*_Pooling/config.json", "*_Dense/config.json"]
FETCHED += ["config_sentence_transformers.json", "sentence_bert_config.json"]

TO_SAFETENSORS = (
    'python -c "import sys, transformers as t; folder = sys.argv[1]; '
    "name = t.AutoConfig.from_pretrained(folder).architectures[0]; "
    'getattr(t, name).from_pretrained(folder).save_pretrained(folder)"'
)


def find(name: str | Path) -> Path:
    """Return the folder of a checkpoint: an existing folder, a model that ships with clearhead, or one of the hub.

    A hub name is `organisation/model`; it is fetched by huggingface_hub, which looks into its local cache and asks
    the network only if HF_HUB_OFFLINE is not set. Raises CheckpointError that says what was tried.
    """
    folder, shipped = Path(name), _shipped()
    if isinstance(name, str) and name in shipped and not os.path.isfile(folder / CONFIG):
        return DEFAULTS / name
    if os.path.isdir(folder):  # unlike Path's, no error for what cannot be a path, such as a text given by mistake
        return folder
    if os.path.exists(folder):
        raise CheckpointError(f"{folder} is a file: expected the folder that holds config.json and {WEIGHTS}")
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and name[0] != ".":
        return _fetch(name)
    ships = nearest(str(name), shipped) if shipped else ""
    raise CheckpointError(
        f"no model {str(name)!r}: it is not a folder, not a name on the Hugging Face hub (organisation/model), and "
        f"does not ship with clearhead{ships}"
    )


def _shipped() -> list[str]:
    return sorted(path.parent.name for path in DEFAULTS.glob(f"*/{CONFIG}"))


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download  # half a second that only a hub name should pay for

    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED))
    except Exception as error:  # whatever a network, a cache or a stranger's server can do
        reason = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"{name!r} is not a folder here, and the Hugging Face hub did not give it: {type(error).__name__}: {reason}"
        ) from error


class Weights:
    """The tensors of a checkpoint folder, one file or several: shapes at once, numbers one tensor at a time.

    Numbers are mapped from the file, not copied, and one file is open at a time. Raises CheckpointError when a file
    is missing, truncated or not what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, Path] = {}
        self.folder = folder
        self.opened: Any = None
        self.opened_path: Path | None = None
        index = self._index()
        for path in sorted(set(index.values())) if index else [folder / WEIGHTS]:
            opened = self._open(path)
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                if index and index.get(name) != path:
                    raise CheckpointError(f"{path}: holds tensor {name!r}, which {INDEX} does not place there")
                self.shapes[name], self.files[name] = tuple(opened.get_slice(name).get_shape()), path
        if lost := sorted(set(index) - set(self.shapes)):
            raise CheckpointError(f"{index[lost[0]]}: {INDEX} places tensor {lost[0]!r} there, but it is not")

    def read(self, name: str) -> Tensor:
        """Return the tensor called `name` as the file has it."""
        return self._open(self.files[name]).get_tensor(name)

    def file(self, name: str) -> str:
        """Return the path of the file that holds `name`, or of the folder if none does."""
        return str(self.files.get(name, self.folder))

    def _index(self) -> dict[str, Path]:
        """Return which file each tensor is in, or nothing where one file holds all."""
        if (self.folder / WEIGHTS).is_file():
            return {}
        if not (self.folder / INDEX).is_file():
            if pickled := sorted(path.name for path in self.folder.glob("*.bin")):
                raise CheckpointError(
                    f"{self.folder} holds no {WEIGHTS}, only {pickled[0]}, a pickle: opening one runs code. "
                    f"If you trust it, convert it once: {TO_SAFETENSORS} {self.folder}"
                )
            raise CheckpointError(f"{self.folder} holds no {WEIGHTS}: a checkpoint folder has {CONFIG} and {WEIGHTS}")
        placed = read_json(self.folder / INDEX, {"weight_map": PLACED}).get("weight_map")
        if not placed:
            raise CheckpointError(f"{self.folder / INDEX}: expected a weight_map from tensors to files")
        return {name: self.folder / file for name, file in placed.items()}

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path != self.opened_path:
            try:
                self.opened, self.opened_path = safe_open(path, framework="pt"), path
            except FileNotFoundError:
                raise CheckpointError(f"{path} is missing, though {INDEX} names it: get the folder again") from None
            except (SafetensorError, OSError) as error:
                advice = "it is a Git LFS pointer: run `git lfs pull`" if _is_pointer(path) else "get it again"
                raise CheckpointError(f"{path} is not a whole safetensors file ({error}): {advice}") from error
        return self.opened


def _is_name(name: str) -> bool:
    """Return whether this names a file beside the index, and no other place."""
    return Path(name).name == name and "\0" not in name


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(b"version https://git-lfs")) == b"version https://git-lfs"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on leaving, what was written there appears in `folder`, all or nothing.

    A new folder appears whole by one rename. In an existing one each file is replaced by a rename and other files
    stay. Where the old config or tokenizer differs, config.json goes first and comes last: an interrupted save of
    another model leaves a folder that is refused, never one model's names on another's weights.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: expected a folder to save in")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{glob.escape(folder.name)}.????????.partial"):  # of a save that was killed
        shutil.rmtree(stale, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():
            to_disk(path)
        if folder.exists():
            _merge(partial, folder)
        else:
            partial.rename(folder)
        to_disk(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _merge(partial: Path, folder: Path) -> None:
    files = sorted(partial.iterdir(), key=lambda path: path.name == CONFIG)  # config.json last
    small = [path for path in files if path.suffix != ".safetensors"]
    if any(not (folder / p.name).is_file() or (folder / p.name).read_bytes() != p.read_bytes() for p in small):
        (folder / CONFIG).unlink(missing_ok=True)
        to_disk(folder)
    for path in files:
        path.replace(folder / path.name)
    to_disk(folder)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that may be read by whom any new file may: safetensors itself lets its owner alone.

    Args:
        tensors: What to write, by name.
        path: Where to.
        metadata: Texts for the header.
    """
    from safetensors.torch import save_file

    with path.open("wb") as file:
        mode = os.fstat(file.fileno()).st_mode  # as the umask and the folder say
    save_file(dict(tensors), path, metadata)
    path.chmod(stat.S_IMODE(mode))


def to_disk(path: Path) -> None:
    """Wait until the disk has it: a rename may otherwise survive a power cut that the contents do not."""
    if os.name != "posix":
        return  # Windows cannot be asked
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
