"""A model that hears, opened by its name: a sound file in, the words that were said out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.checkpoints.endings import GENERATION, end_tokens, generation_kinds
from clearhead.cli.opening import open_for
from clearhead.data.sound import SoundProcessor
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError, nearest
from clearhead.generation import Beams, Never, answers, generate
from clearhead.generation.packed import fastest
from clearhead.generation.sampling import GREEDY, Adjust
from clearhead.json_files import read_json
from clearhead.models.encoder_decoder import EncoderDecoder

FRAMES_A_POSITION = 2  # the second convolution of SoundFront takes every other frame
ENGLISH_ALONE = 51_864  # tokens of a Whisper that knows one language; one more for those that know more


@dataclass(frozen=True)
class NotFirst:
    """Lets an answer not begin with some tokens: `n` tokens stand before it."""

    tokens: Sequence[int]
    n: int

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores with -inf for these tokens in rows where nothing is written yet."""
        logits = logits.clone()
        for row, text in enumerate(texts):
            if len(text) == self.n:
                logits[row, list(self.tokens)] = -torch.inf
        return logits


class Listener:
    """A model that hears, its processor of sounds and its tokenizer."""

    def __init__(self, name: str, *, threads: int | None = None) -> None:
        """Open the checkpoint; InputError where its model reads no sound."""
        if threads is not None:
            torch.set_num_threads(threads)
        folder, model = open_for("transcribe", name)
        assert isinstance(model, EncoderDecoder)
        self.config, self.sounds, self.tokenizer = model.config, SoundProcessor.load(folder), Tokenizer.load(folder)
        assert model.config.n_mels is not None
        self.sounds.require_fits(model.config.n_mels, FRAMES_A_POSITION * model.config.max_source_len)
        self.model, _ = fastest(model, tokens=model.config.max_target_len)
        self.ends = end_tokens(folder, self.config.vocab_size) | {model.config.end_id}
        path = folder / GENERATION
        self.said: dict[str, Any] = read_json(path, generation_kinds(self.config.vocab_size)) if path.is_file() else {}

    def write(self, path: Path, *, language: str | None = None, beams: int | None = None) -> str:
        """Return what is said in a sound file; without a `language` it is what the model takes it for."""
        pieces = self.sounds.read(path)
        begin = self.beginning(pieces[0], language)
        adjust: list[Adjust] = [Never(self.said.get("suppress_tokens") or ())]
        if first := self.said.get("begin_suppress_tokens"):
            adjust.append(NotFirst(first, len(begin)))
        steps = (
            generate(
                self.model,
                [piece],
                max_new_tokens=self.config.max_target_len - len(begin),
                choose=GREEDY if beams is None else Beams(beams),
                adjust=adjust,
                stop=self.ends,
                begin=begin,
            )
            for piece in pieces
        )
        return " ".join(self.tokenizer.decode(answers(each, 1)[0]).strip() for each in steps)

    def beginning(self, sound: Float[Tensor, "mels frames"], language: str | None) -> list[int]:
        """Return what an answer begins with: start, and for a model of many languages which one, and the task."""
        start, plain = [self.config.start_id], self.token("<|notimestamps|>")
        languages = self.languages()
        if not languages:
            if language is not None:
                raise InputError(f"--language {language}: this model knows one language, leave it out")
            return [*start, *plain]
        if language is not None and language not in languages:
            raise InputError(f"this model knows no language {language!r}{nearest(language, list(languages))}")
        chosen = languages[language] if language else self.heard(sound, languages.values())
        return [*start, chosen, *self.token("<|transcribe|>"), *plain]

    def languages(self) -> dict[str, int]:
        """Return the tokens of the languages by their code, none for a model that knows only English."""
        if not self.said.get("is_multilingual", self.config.vocab_size > ENGLISH_ALONE):
            return {}
        known: dict[str, int] = self.said.get("lang_to_id") or {}
        if not known:  # not said by older files: their tokens stand between that of the start and those of the tasks
            tasks = [*self.token("<|translate|>"), *self.token("<|transcribe|>")]
            between = range(self.config.start_id + 1, min(tasks, default=0))
            known = {str(self.tokenizer.backend.id_to_token(token)): token for token in between}
        return {name.strip("<|>"): token for name, token in known.items()}

    @torch.no_grad()
    def heard(self, sound: Float[Tensor, "mels frames"], tokens: Collection[int]) -> int:
        """Return the likeliest of the languages' tokens."""
        scores = self.model(sound[None], torch.tensor([[self.config.start_id]]))[0, -1]
        return max(tokens, key=lambda token: float(scores[token]))

    def token(self, name: str) -> list[int]:
        """Return the number of a token in a list, or an empty one where the tokenizer has none of this name."""
        number = self.tokenizer.backend.token_to_id(name)
        return [] if number is None else [number]
