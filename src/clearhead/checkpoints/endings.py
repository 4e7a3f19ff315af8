"""Which tokens a checkpoint says that an answer begins or ends with, for the models that write."""

from pathlib import Path

from clearhead.json_files import BOOLEAN, Kind, list_of, mapping_to, one_or_several, read_json, whole

GENERATION = "generation_config.json"
FORCED_FIRST = "forced_bos_token_id"  # what every answer begins with after the start token (BART's)


def generation_kinds(n_tokens: int) -> dict[str, Kind]:
    """Return what generation_config.json may say where a model knows `n_tokens` tokens, the rows of its embedding."""
    token = whole(0, n_tokens - 1, "a token id")
    return {
        "eos_token_id": one_or_several(whole(what="a token id")),  # one that the model does not know never comes
        FORCED_FIRST: one_or_several(token),
        "suppress_tokens": list_of(token),
        "begin_suppress_tokens": list_of(token),
        "is_multilingual": BOOLEAN,
        "lang_to_id": mapping_to(token),
    }


def end_tokens(folder: Path, n_tokens: int) -> set[int]:
    """Return the tokens after which a checkpoint says that nothing follows; the model knows `n_tokens` tokens."""
    return set(stated_tokens(folder, "eos_token_id", n_tokens))


def stated_tokens(folder: Path, key: str, n_tokens: int) -> list[int]:
    """Return the tokens that a checkpoint has under `key`, one or several, in the file about writing or in its config.

    Args:
        folder: The checkpoint.
        key: One of those that `generation_kinds` describes.
        n_tokens: How many tokens the model knows.

    Raises:
        CheckpointError: What stands there is no token id, or one that the model does not know.
    """
    kinds = generation_kinds(n_tokens)
    for path in (folder / GENERATION, folder / "config.json"):
        found = read_json(path, kinds).get(key) if path.is_file() else None
        if found is None:
            continue
        return found if isinstance(found, list) else [found]
    return []
