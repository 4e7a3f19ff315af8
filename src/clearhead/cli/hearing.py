"""A model that hears, opened by its name: a sound file in, the words that were said out."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.checkpoints.endings import GENERATION, end_tokens, generation_kinds
from clearhead.checkpoints.generation_settings import GenerationSettings
from clearhead.cli.checkpoint_choices import adjustments, beams_of, most_new, say_unread
from clearhead.cli.languages import language_code
from clearhead.cli.opening import open_for
from clearhead.data.sound import SoundProcessor
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError, nearest
from clearhead.generation import answers, generate
from clearhead.generation.packed import fastest
from clearhead.json_files import read_json
from clearhead.models.encoder_decoder import EncoderDecoder

FRAMES_A_POSITION = 2  # the second convolution of SoundFront takes every other frame
ENGLISH_ALONE = 51_864  # tokens of a Whisper that knows one language; one more for those that know more


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
        self.settings = GenerationSettings.load(folder, self.config.vocab_size)
        say_unread(self.settings)
        start = self.settings.start
        self.start = self.config.start_id if start is None else start

    def write(self, path: Path, *, language: str | None = None, beams: int | None = None) -> str:
        """Return what is said in a sound file; without a `language` it is what the model takes it for."""
        pieces = self.sounds.read(path)
        begin = self.beginning(pieces[0], language)
        room = self.config.max_target_len - len(begin)
        n_new = min(room, most_new(self.settings, len(begin)) or room)
        steps = (
            generate(
                self.model,
                [piece],
                max_new_tokens=n_new,
                choose=beams_of(self.settings, beams),
                adjust=adjustments(self.settings, len(begin), n_new, self.ends),
                stop=self.ends,
                begin=begin,
            )
            for piece in pieces
        )
        return " ".join(self.tokenizer.decode(answers(each, 1)[0]).strip() for each in steps)

    def beginning(self, sound: Float[Tensor, "mels frames"], language: str | None) -> list[int]:
        """Return what an answer begins with: start, and for a model of many languages which one, and the task.

        A `language` that a person gives counts before that of the checkpoint, and both before what the model hears.
        Older checkpoints give the tokens themselves, by their place.
        """
        start, plain, languages = [self.start], self.token("<|notimestamps|>"), self.languages()
        said = self.settings.language or None
        if language is None and said is None and self.settings.task is None and self.settings.forced_ids:
            return self.forced(sound, plain)
        if not languages:
            if language is not None:
                raise InputError(f"--language {language}: this model knows one language, leave it out")
            return [*start, *plain]
        code = language_code(language or said or "")
        if code and code not in languages:
            source = "" if language else f"{GENERATION}: "
            raise InputError(
                f"{source}this model knows no language {language or said!r}{nearest(code, list(languages))}"
            )
        chosen = languages[code] if code else self.heard(sound, languages.values())
        task = self.token(f"<|{self.settings.task or 'transcribe'}|>")
        if not task and self.settings.task:
            raise InputError(f"{GENERATION}: task {self.settings.task!r} is unknown to the tokenizer")
        return [*start, chosen, *task, *plain]

    def forced(self, sound: Float[Tensor, "mels frames"], plain: list[int]) -> list[int]:
        """Return the beginning that `forced_decoder_ids` describe; a language that they leave open is heard."""
        begin = [self.start]
        for place, token in sorted(self.settings.forced_ids):
            if place != len(begin):
                raise InputError(f"{GENERATION}: forced_decoder_ids leave place {len(begin)} out: expected 1, 2, ...")
            if token is None:
                languages = self.languages()
                if place != 1 or not languages:
                    raise InputError(f"{GENERATION}: forced_decoder_ids leave the token at place {place} open")
                token = self.heard(sound, languages.values())
            begin.append(token)
        return begin if set(plain) <= set(begin) else [*begin, *plain]

    def languages(self) -> dict[str, int]:
        """Return the tokens of the languages by their code, none for a model that knows only English."""
        if not self.said.get("is_multilingual", self.config.vocab_size > ENGLISH_ALONE):
            return {}
        known: dict[str, int] = self.said.get("lang_to_id") or {}
        if not known:  # not said by older files: their tokens stand between that of the start and those of the tasks
            tasks = [*self.token("<|translate|>"), *self.token("<|transcribe|>")]
            between = range(self.start + 1, min(tasks, default=0))
            known = {str(self.tokenizer.backend.id_to_token(token)): token for token in between}
        return {name.strip("<|>"): token for name, token in known.items()}

    @torch.no_grad()
    def heard(self, sound: Float[Tensor, "mels frames"], tokens: Collection[int]) -> int:
        """Return the likeliest of the languages' tokens."""
        scores = self.model(sound[None], torch.tensor([[self.start]]))[0, -1]
        return max(tokens, key=lambda token: float(scores[token]))

    def token(self, name: str) -> list[int]:
        """Return the number of a token in a list, or an empty one where the tokenizer has none of this name."""
        number = self.tokenizer.backend.token_to_id(name)
        return [] if number is None else [number]
