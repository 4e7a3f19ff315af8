"""Which tokens a checkpoint says that an answer begins or ends with, for the models that write."""

from pathlib import Path

from clearhead.config import read_json
from clearhead.errors import CheckpointError

GENERATION = "generation_config.json"
FORCED_FIRST = "forced_bos_token_id"  # what every answer begins with after the start token (BART's)


def end_tokens(folder: Path) -> set[int]:
    """Return the tokens after which a checkpoint says that nothing follows."""
    return set(stated_tokens(folder, "eos_token_id"))


def stated_tokens(folder: Path, key: str) -> list[int]:
    """Return the tokens that a checkpoint has under `key`, one or several, in the file about writing or in its config.

    Raises:
        CheckpointError: What stands there is no token id.
    """
    for path in (folder / GENERATION, folder / "config.json"):
        found = read_json(path).get(key) if path.is_file() else None
        if found is None:
            continue
        tokens = found if isinstance(found, list) else [found]
        if not all(type(token) is int and token >= 0 for token in tokens):
            raise CheckpointError(f"{path}: {key}: expected one token id or several in a list, got {found!r}")
        return tokens
    return []
