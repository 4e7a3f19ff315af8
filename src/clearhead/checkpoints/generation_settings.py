"""generation_config.json: how a checkpoint's authors want an encoder-decoder to write.

Every key is read, or has nothing to do with which tokens come, or is named in `unread` so that whoever asks for text
can be told. Where there is no such file, config.json holds the same keys in older checkpoints (BART's).

Next: `generation/constraints.py`, what most of the settings become.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.checkpoints.endings import FORCED_FIRST, GENERATION, generation_kinds
from clearhead.json_files import BOOLEAN, POSITIVE, TEXT, Kind, list_of, number, one_or_several, read_json, shown, whole

# Keys that change no token that is chosen here: bookkeeping, what is returned, memory, options of sampling (answers of
# translate and transcribe are the likeliest ones), and Whisper's timestamps and languages, which hearing.py reads.
HARMLESS = frozenset(
    """
    _commit_hash _from_model_config _name_or_path transformers_version use_cache cache_implementation cache_config
    max_cache_len compile_config disable_compile num_return_sequences output_attentions output_hidden_states
    output_scores output_logits return_dict_in_generate pad_token_id bos_token_id eos_token_id temperature top_k
    top_p min_p top_h typical_p epsilon_cutoff eta_cutoff renormalize_logits is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold low_memory prefill_chunk_size is_multilingual
    lang_to_id task_to_id alignment_heads max_initial_timestamp_index no_timestamps_token_id prev_sot_token_id
    median_filter_width remove_invalid_values num_beam_groups
    """.split()
)
OFF: dict[str, tuple[Any, ...]] = {  # the values with which a key that is not honored changes nothing
    "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "do_sample": (False,),
    "return_timestamps": (False,),
}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How answers are to be written.

    Attributes:
        bad_words: Sequences of tokens that never come.
        suppressed, suppressed_first: Tokens that never come, and that do not come first.
        no_repeat: Length of the sequences that come once at most; 0: any may come again.
        repetition_penalty: What scores of tokens that occurred are divided by.
        min_len, max_len: Tokens of an answer and its beginning together.
        min_new, max_new: Tokens of an answer alone; where both are given, these count.
        beams, length_penalty, early_stopping: Of beam search.
        forced_first, forced_last: The first tokens behind the start, and the last one of an answer of greatest length.
        start: The token that an answer begins with.
        language, task, forced_ids: What Whisper's answers begin with; `forced_ids` by position, None: free.
        unread: The keys that are not honored, with their values.
    """

    bad_words: tuple[tuple[int, ...], ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    no_repeat: int = 0
    repetition_penalty: float = 1.0
    min_len: int = 0
    min_new: int = 0
    max_len: int | None = None
    max_new: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: Any = False
    forced_first: tuple[int, ...] = ()
    forced_last: tuple[int, ...] = ()
    start: int | None = None
    language: str | None = None
    task: str | None = None
    forced_ids: tuple[tuple[int, int | None], ...] = ()
    unread: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path, n_tokens: int) -> "GenerationSettings":
        """Read the settings of a checkpoint folder, whose model knows `n_tokens` tokens.

        Raises:
            CheckpointError: The file is damaged, or a value is not what its key allows.
        """
        alone = (folder / GENERATION).is_file()
        path = folder / (GENERATION if alone else "config.json")
        if not path.is_file():
            return cls()
        said = read_json(path, kinds(n_tokens))
        given = {name: said[key] for key, name in NAMES.items() if said.get(key) is not None}
        for name in ("suppressed", "suppressed_first", "forced_first", "forced_last"):
            if name in given:
                given[name] = tuple(given[name]) if isinstance(given[name], list) else (given[name],)
        for name in ("bad_words", "forced_ids"):
            if name in given:
                given[name] = tuple(map(tuple, given[name]))
        return cls(**given, unread=tuple(_unread(said)) if alone else ())


NAMES = {
    "bad_words_ids": "bad_words",
    "suppress_tokens": "suppressed",
    "begin_suppress_tokens": "suppressed_first",
    "no_repeat_ngram_size": "no_repeat",
    "repetition_penalty": "repetition_penalty",
    "min_length": "min_len",
    "min_new_tokens": "min_new",
    "max_length": "max_len",
    "max_new_tokens": "max_new",
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    FORCED_FIRST: "forced_first",
    "forced_eos_token_id": "forced_last",
    "decoder_start_token_id": "start",
    "language": "language",
    "task": "task",
    "forced_decoder_ids": "forced_ids",
}


def kinds(n_tokens: int) -> Mapping[str, Kind]:
    """Return which values the keys may have."""
    token = whole(0, n_tokens - 1, "a token id")
    place = Kind(
        "a place and a token id, or null",
        lambda pair: (
            isinstance(pair, list)
            and len(pair) == 2
            and whole(1).fits(pair[0])
            and (pair[1] is None or token.fits(pair[1]))
        ),
    )
    word = Kind("a list of token ids", lambda ids: bool(ids) and list_of(token).fits(ids))
    return {
        **generation_kinds(n_tokens),
        "bad_words_ids": list_of(word),
        "no_repeat_ngram_size": whole(),
        "repetition_penalty": POSITIVE,
        "min_length": whole(),
        "min_new_tokens": whole(),
        "max_length": whole(1),
        "max_new_tokens": whole(1),
        "num_beams": whole(1),
        "length_penalty": number(),
        "early_stopping": Kind('true, false or "never"', lambda value: isinstance(value, bool) or value == "never"),
        "forced_eos_token_id": one_or_several(token),
        "decoder_start_token_id": token,
        "language": TEXT,
        "task": TEXT,
        "forced_decoder_ids": list_of(place),
        "do_sample": BOOLEAN,
    }


def _unread(said: Mapping[str, Any]) -> list[str]:
    """Return the keys that would change what is written and are not honored, each with its value."""
    return [
        f"{key} {shown(value)}"
        for key, value in said.items()
        if value is not None and key not in NAMES and key not in HARMLESS and value not in OFF.get(key, ())
    ]
