"""Text to token ids and back, as the checkpoint was trained to have it.

A checkpoint folder says how in `tokenizer.json`; older ones in `vocab.txt` (WordPiece, Devlin et al. 2018; Wu et al.
2016) or `vocab.json` + `merges.txt` (RoBERTa's byte-level BPE; Radford et al. 2019). The `tokenizers` library does the
cutting. Nothing is cut off in silence: padding and truncation that a file switches on are switched off, `max_len`
records how many pieces it cut, and `windows` reads a long text to its end.

Next: `text.py` groups the rows into batches.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.data.tokenizer_settings import (
    NORMALIZER,
    PIECE_NUMBER,
    ROLES,
    SETTINGS,
    add_tokens,
    marks,
    set_prefix_space,
)
from clearhead.errors import CheckpointError, ClearheadError, InputError
from clearhead.json_files import read_json

# google-research/bert and facebookresearch/fairseq's roberta, in the order (padding, unknown, first, last, mask)
BERT_TOKENS = dict(zip(ROLES, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")))
ROBERTA_TOKENS = dict(zip(ROLES, ("<pad>", "<unk>", "<s>", "</s>", "<mask>")))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One text, cut in pieces; four lists of the same length."""

    ids: list[int]
    pieces: list[str]
    spans: list[tuple[int, int]]  # text[start:end] is what the piece stands for; (0, 0) for a special token
    special: list[bool]  # put there by the tokenizer, [CLS] and the like, rather than written in the text
    truncated: int = 0  # how many pieces of the text `max_len` cut off its end

    def require_known(self, vocab_size: int) -> "Encoded":
        """Return this text; raises InputError where one of its tokens is none of a model's `vocab_size` tokens."""
        for piece, token in zip(self.pieces, self.ids):
            if token >= vocab_size:
                raise InputError(
                    f"{piece!r} is token {token:,} of the tokenizer, and the model knows {vocab_size:,} tokens, "
                    f"counted from 0: the tokenizer is of another model, or was extended and the weights were not"
                )
        return self


class Tokenizer:
    """A checkpoint's tokenizer: `load` it, `encode` with it, `save` it beside the weights."""

    def __init__(self, backend: Any, settings: dict[str, Any]) -> None:
        """Wrap a `tokenizers.Tokenizer`; `settings` is what tokenizer_config.json says of it."""
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.settings = backend, settings
        self._before, self._after = marks(backend)

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Open the tokenizer of a checkpoint folder; CheckpointError says which file is missing or broken."""
        folder = Path(folder)
        try:
            settings = _read_settings(folder)
            if (opened := _open(folder, settings)) is not None:
                backend, settings = opened
                add_tokens(backend, folder, settings)
                return cls(backend, settings)
        except ClearheadError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exceptions
            raise CheckpointError(f"{folder}: its tokenizer cannot be read: {error}") from error
        raise CheckpointError(
            f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.txt, or vocab.json and merges.txt"
        )

    def encode(self, text: str, *, max_len: int | None = None) -> Encoded:
        """Cut `text` in pieces, special tokens around it; `max_len` counts those too and `truncated` what it cut."""
        return self.encode_many([text], max_len=max_len)[0]

    def encode_many(self, texts: Sequence[str], *, max_len: int | None = None) -> list[Encoded]:
        """Do what `encode` does for every text, on all processors at once."""
        room = self._room(max_len)
        return [self._wrap(body, 0, room) for body in self._bodies(texts)]

    def encode_body(self, text: str) -> list[int]:
        """Return the ids of `text`, of whole books too, without the special tokens that `encode` puts around it."""
        ids: list[int] = self._encodings([text], ids_alone=True)[0].ids
        return ids

    def windows(self, text: str, max_len: int) -> list[Encoded]:
        """Cut `text` to its end into windows of at most `max_len` ids, special tokens around each; at least one."""
        room = self._room(max_len)
        (body,) = self._bodies([text])
        assert room is not None
        starts = range(0, max(len(body.ids), 1), room)
        return [self._wrap(body, start, room, whole=True) for start in starts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that `ids` stand for, special tokens left out."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, for us and for transformers."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """How many token ids there are: one more than the largest."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_id(self) -> int:
        """The id that fills a row up; no model looks at it. 0 for a tokenizer that has none."""
        pad = self._id("pad_token")
        return 0 if pad is None else pad

    @property
    def mask_id(self) -> int | None:
        """The id of the word to be guessed, or None for a tokenizer that knows no such thing."""
        return self._id("mask_token")

    @property
    def end_id(self) -> int | None:
        """The id that ends a text, or None for a tokenizer that names none."""
        name = self.settings.get("eos_token")
        found: int | None = None if name is None else self.backend.token_to_id(name)
        return found

    @property
    def unknown_id(self) -> int | None:
        """The id of whatever the vocabulary lacks, or None for a tokenizer that can spell everything."""
        unknown = self._id("unk_token")
        return None if unknown == self.end_id else unknown  # GPT-2 calls its end so, and never needs it

    @property
    def special_ids(self) -> list[int]:
        """The ids of every special token, in ascending order."""
        return sorted(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def _id(self, role: str) -> int | None:
        names = (self.settings.get(role), BERT_TOKENS[role], ROBERTA_TOKENS[role])
        known: list[int | None] = [self.backend.token_to_id(name) for name in names if name is not None]
        return next((i for i in known if i is not None), None)

    def _room(self, max_len: int | None) -> int | None:
        """How many pieces of text fit into `max_len` ids."""
        n_special = len(self._before) + len(self._after)
        if max_len is not None and max_len <= n_special:
            raise InputError(f"max_len {max_len} leaves no room for text: {n_special} special tokens stand around it")
        return None if max_len is None else max_len - n_special

    def _bodies(self, texts: Sequence[str]) -> list[Encoded]:
        """Cut texts in pieces and take the special tokens off both ends."""
        encodings = self._encodings(texts)
        inside = [slice(len(self._before), len(e.ids) - len(self._after)) for e in encodings]
        return [
            Encoded(ids=e.ids[s], pieces=e.tokens[s], spans=e.offsets[s], special=[False] * len(e.ids[s]))
            for e, s in zip(encodings, inside)
        ]

    def _encodings(self, texts: Sequence[str], *, ids_alone: bool = False) -> list[Any]:
        """Return what `tokenizers` makes of each text; `ids_alone`: no special tokens, nobody asks what is where."""
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"expected a text (str), got {type(text).__name__}: {text!r:.60}")
        try:
            if ids_alone:
                return list(self.backend.encode_batch_fast(list(texts), add_special_tokens=False))
            return list(self.backend.encode_batch(list(texts)))
        except (UnicodeEncodeError, TypeError) as error:  # half of a surrogate pair
            raise InputError(f"a text that is not valid Unicode cannot be encoded: {error}") from error
        except Exception as error:  # `tokenizers` raises bare ones, as for a word of a vocabulary without [UNK]
            raise InputError(f"this model's tokenizer cannot cut up a text: {error}") from error

    def _wrap(self, body: Encoded, start: int, room: int | None, *, whole: bool = False) -> Encoded:
        """Put the special tokens around `room` pieces of `body` from `start` on."""
        end = len(body.ids) if room is None else min(start + room, len(body.ids))
        before, after, here = self._before, self._after, slice(start, end)
        return Encoded(
            ids=[i for i, _ in before] + body.ids[here] + [i for i, _ in after],
            pieces=[piece for _, piece in before] + body.pieces[here] + [piece for _, piece in after],
            spans=[(0, 0)] * len(before) + body.spans[here] + [(0, 0)] * len(after),
            special=[True] * len(before) + body.special[here] + [True] * len(after),
            truncated=0 if whole else len(body.ids) - end,
        )


def _open(folder: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Return the tokenizer of whichever files are there, and what to call its special tokens; None for no files."""
    if (folder / "tokenizer.json").is_file():
        import tokenizers

        return _as_set(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), settings), settings
    if (folder / "vocab.txt").is_file():
        return _word_piece(folder / "vocab.txt", settings)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _byte_level(folder / "vocab.json", folder / "merges.txt", settings)
    return None


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, special tokens as plain strings; an absent file says nothing."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second has the last word
        path = folder / name
        if path.is_file():
            settings |= read_json(path, SETTINGS)
    for role in (*ROLES, "eos_token"):
        if isinstance(settings.get(role), dict):  # {"content": "<mask>", "lstrip": true, ...}
            settings[role] = settings[role]["content"]
    return settings


def _as_set(backend: Any, settings: dict[str, Any]) -> Any:
    """Return the tokenizer of a tokenizer.json that does what tokenizer_config.json says, where they disagree.

    The latter has the last word in transformers, but for classes that are no model's own.
    """
    from tokenizers import normalizers

    if settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return backend
    said = {ours: settings[key] for key, ours in NORMALIZER.items() if settings.get(key) is not None}
    if said and isinstance(backend.normalizer, normalizers.BertNormalizer):
        is_so = json.loads(backend.normalizer.__getstate__())
        backend.normalizer = normalizers.BertNormalizer(**{key: is_so[key] for key in is_so if key != "type"} | said)
    if (space := settings.get("add_prefix_space")) is not None:
        set_prefix_space(backend, space)
    return backend


def _word_piece(path: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """BERT's tokenizer from its vocabulary, one piece a line."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    with path.open(encoding="utf-8") as lines:
        vocab = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    names = {role: settings.get(role) or default for role, default in BERT_TOKENS.items()}
    _require(names, vocab, path)
    unknown, first, last = names["unk_token"], names["cls_token"], names["sep_token"]
    backend = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(list(names.values()))
    return backend, {"tokenizer_class": "BertTokenizer", **settings, **names}


def _byte_level(vocab_path: Path, merges_path: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """RoBERTa's tokenizer from its vocabulary and its merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    kind = settings.get("tokenizer_class") or "RobertaTokenizer"
    if not str(kind).startswith(("Roberta", "Bart")):
        raise CheckpointError(
            f"{vocab_path} is for a {kind}, of which tokenizer.json is read alone: save it with transformers to get one"
        )
    vocab = read_json(vocab_path)
    for piece, number in vocab.items():
        PIECE_NUMBER.check(f"{vocab_path}: {piece!r}", number)
    names = {role: settings.get(role) or default for role, default in ROBERTA_TOKENS.items()}
    _require(names, vocab, vocab_path)
    space = bool(settings.get("add_prefix_space", False))
    first, last, mask = names["cls_token"], names["sep_token"], names["mask_token"]
    backend = Tokenizer(models.BPE.from_file(str(vocab_path), str(merges_path)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    # by position, as the keywords' names change between versions: last, first, trim_offsets, add_prefix_space
    backend.post_processor = processors.RobertaProcessing((last, vocab[last]), (first, vocab[first]), True, space)
    backend.decoder = decoders.ByteLevel()
    # <mask> takes the space before it along, as in "Paris is the<mask> of France"
    backend.add_special_tokens([AddedToken(name, lstrip=name == mask, normalized=False) for name in names.values()])
    return backend, {"tokenizer_class": "RobertaTokenizer", **settings, **names}


def _require(names: dict[str, str], vocab: dict[str, int], path: Path) -> None:
    if absent := [name for name in names.values() if name not in vocab]:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}: name the special tokens in tokenizer_config.json")
