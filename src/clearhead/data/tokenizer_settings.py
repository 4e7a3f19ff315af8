"""What the files beside a tokenizer.json change in it, and what it puts around a text.

transformers reads tokenizer_config.json and added_tokens.json after tokenizer.json and follows them where they say more
or something else: which further tokens there are, and whether a text begins with a space. The functions here do the
same to a `tokenizers.Tokenizer`.

Next: `tokenizer.py`, which uses them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import CheckpointError
from clearhead.json_files import BOOLEAN, TEXT, Kind, read_json, whole

ADDED = "added_tokens.json"
Mark = tuple[int, str]  # a token that stands around a text: its id and its name
Step = dict[str, Any]  # one step of a normalizer, pre-tokenizer or decoder, as JSON

ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# What tokenizer_config.json calls the settings of BERT's normalizer.
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _is_token(value: Any) -> bool:
    if not isinstance(value, dict):
        return isinstance(value, str)
    flags = (value.get(key) for key in ("single_word", "lstrip", "rstrip", "normalized", "special"))
    return isinstance(value.get("content"), str) and all(isinstance(flag, bool | None) for flag in flags)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list | dict) and all(map(_is_token, value.values() if isinstance(value, dict) else value))


def _are_numbered(value: Any) -> bool:
    return isinstance(value, dict) and all(key.isdecimal() and len(key) < 10 for key in value)


# What tokenizer_config.json and special_tokens_map.json may say.
TOKEN = Kind('a token: a text, or an object with its text as "content"', _is_token)
TOKENS = Kind("several tokens in a list or an object, each a text or an object", _are_tokens)
FLAGS = (*NORMALIZER, "add_prefix_space", "add_bos_token", "add_eos_token")
SETTINGS = {
    **dict.fromkeys((*ROLES, "bos_token", "eos_token"), TOKEN),
    **dict.fromkeys(FLAGS, BOOLEAN),
    **dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), TOKENS),
    "added_tokens_decoder": Kind("an object with a token for each id", _are_numbered, TOKEN),
    "tokenizer_class": TEXT,
}
PIECE_NUMBER = whole(0, 2**24, "the number of a piece")


def marks(backend: Any) -> tuple[list[Mark], list[Mark]]:
    """Return the special tokens that a tokenizer puts before a text and behind it, as its post-processor says.

    The post-processor is given one piece of another tokenizer, so that the answer does not depend on the vocabulary.
    """
    import tokenizers

    piece = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x")).encode("x")
    whole = backend.post_process(piece)
    place = whole.special_tokens_mask.index(0)
    names = list(zip(whole.ids, whole.tokens))
    return names[:place], names[place + 1 :]


def add_tokens(backend: Any, folder: Path, settings: Mapping[str, Any]) -> None:
    """Make single tokens of what only the files beside tokenizer.json name.

    As in transformers, `added_tokens_decoder` of tokenizer_config.json counts, added_tokens.json where there is none,
    and after them the lists `additional_special_tokens` and `extra_special_tokens`.

    Args:
        backend: The `tokenizers.Tokenizer`; changed.
        folder: The checkpoint's folder.
        settings: What tokenizer_config.json and special_tokens_map.json say.

    Raises:
        CheckpointError: A token would get another id than the file says, so the model would read another one.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    ids: dict[str, int] = {}
    added = []
    for token, number in _named(folder, settings):
        if token.content and token.content not in known:
            known.add(token.content)
            added.append(token)
            if number is not None:
                ids[token.content] = number
    backend.add_tokens(added)
    source = "tokenizer_config.json" if settings.get("added_tokens_decoder") else ADDED
    for content, number in ids.items():
        if (got := backend.token_to_id(content)) != number:
            raise CheckpointError(
                f"{folder}: token {content!r} is number {number} in {source}, but behind the vocabulary it would be "
                f"number {got}: get the tokenizer's files from the same place"
            )


def _named(folder: Path, settings: Mapping[str, Any]) -> Iterable[tuple[Any, int | None]]:
    """Yield every token that the files name beside those of tokenizer.json, with its number where they say it."""
    from tokenizers import AddedToken

    lists = [settings.get(key) or [] for key in ("additional_special_tokens", "extra_special_tokens")]
    special = [token for some in lists for token in (some.values() if isinstance(some, dict) else some)]
    if decoder := settings.get("added_tokens_decoder"):
        for number, token in sorted(decoder.items(), key=lambda pair: int(pair[0])):
            yield _token(token), int(number)
    elif (folder / ADDED).is_file():
        names = {_token(token).content for token in special}
        names |= {value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str)}
        numbers = read_json(folder / ADDED)
        for content, number in numbers.items():
            PIECE_NUMBER.check(f"{folder / ADDED}: {content!r}", number)
        for content, number in sorted(numbers.items(), key=lambda pair: pair[1]):
            yield AddedToken(content, special=content in names, normalized=content not in names), number
    for token in special:
        yield _token(token), None


def _token(said: str | Mapping[str, Any]) -> Any:
    """Return a token from its text, or from an object that says how it is matched, too; special unless it says no."""
    from tokenizers import AddedToken

    if isinstance(said, str):
        return AddedToken(said, special=True, normalized=False)
    keys = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{"special": True} | {key: said[key] for key in keys if key in said})


def set_prefix_space(backend: Any, wanted: bool) -> None:
    """Let a text begin with a space, or not, as `add_prefix_space` of tokenizer_config.json says.

    A space in front is put there by a byte-level or a Metaspace pre-tokenizer or by a normalizer that prepends (Llama
    2), and taken away again by the decoder.

    Args:
        backend: The `tokenizers.Tokenizer`; changed.
        wanted: Whether there is to be a space.
    """

    def changed(step: Step) -> Step | None:
        if step["type"] == "ByteLevel":
            return step | {"add_prefix_space": wanted}
        if step["type"] == "Metaspace" and (step["prepend_scheme"] != "never") != wanted:
            return step | {"prepend_scheme": "always" if wanted else "never"}
        takes_away = step["type"] == "Strip" and (step.get("content"), step.get("start")) == (" ", 1)
        return None if not wanted and (step["type"] == "Prepend" or takes_away) else step

    import tokenizers

    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if (part := getattr(backend, name)) is None:
            continue
        old = json.loads(part.__getstate__())
        new = _with_steps(old, changed)
        if new != old:
            rebuilt = getattr(tokenizers, f"{name}s").Sequence([])
            if new is not None:
                rebuilt.__setstate__(json.dumps(new).encode())
            setattr(backend, name, rebuilt)


def _with_steps(step: Step, change: Callable[[Step], Step | None]) -> Step | None:
    """Return a step, or all that it consists of, changed; None: there is nothing left of it."""
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in step:
            return step | {key: [new for inner in step[key] if (new := _with_steps(inner, change)) is not None]}
    return change(step)
