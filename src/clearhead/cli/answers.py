"""A model that writes, opened by its name: texts in, the texts it writes out, whole or as they come.

`Choices` is how a person wants the tokens chosen; `Writer` puts tokenizer, model and generation together.

Next: `written.py`, one answer in the making.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clearhead.checkpoints.endings import end_tokens
from clearhead.checkpoints.generation_settings import GenerationSettings
from clearhead.cli.arguments import Choosing
from clearhead.cli.checkpoint_choices import adjustments, say_unread
from clearhead.cli.opening import open_for
from clearhead.cli.output import note
from clearhead.cli.written import MAX_TOKENS_A_LETTER, Written, end_of_answer
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError
from clearhead.generation import Beams, Never, RepetitionPenalty, Sampled, generate
from clearhead.generation.packed import fastest
from clearhead.generation.sampling import GREEDY, Adjust, Choose
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTForCausalLM

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
FEW = 8  # of what a model does not know, listed


@dataclass(frozen=True)
class Choices:
    """How tokens are chosen, how many, and where an answer ends."""

    max_new_tokens: int
    choose: Choose | Beams = GREEDY
    adjust: tuple[Adjust, ...] = ()
    stops: tuple[str, ...] = ()

    def of_row(self, row: int) -> "Choices":
        """Return the choices for prompts from number `row` on: each has a seed of its own, wherever it stands."""
        if not isinstance(self.choose, Sampled) or self.choose.seed is None:
            return self
        return replace(self, choose=replace(self.choose, seed=self.choose.seed + row))


@dataclass(frozen=True)
class Answer:
    """What was written after, or of, a text: how many tokens, and whether it ended by itself or by their number."""

    text: str
    written: str
    tokens: int
    end: str


class Writer:
    """A model that writes, and its tokenizer."""

    def __init__(
        self, verb: str, name: str, *, dtype: str = "fp32", threads: int | None = None, tokens: int | None = None
    ) -> None:
        """Open the checkpoint for `generate` or `translate`; InputError where its model does not write so.

        `tokens` is how many an answer has at most: little is prepared for a short one.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        folder, model = open_for(verb, name)
        assert isinstance(model, GPTForCausalLM | EncoderDecoder)
        self.tokenizer, self.config = Tokenizer.load(folder), model.config
        self.continues = isinstance(model, GPTForCausalLM)
        self.ends = end_tokens(folder, self.config.vocab_size)
        self.never: tuple[Adjust, ...] = ()
        self.begin: list[int] | None = None
        self.settings = GenerationSettings()
        if isinstance(model, EncoderDecoder):
            self.settings = GenerationSettings.load(folder, self.config.vocab_size)
            say_unread(self.settings)
            start = self.settings.start
            self.begin = [model.config.start_id if start is None else start]
            self.ends |= {model.config.end_id}
            self.never = (Never({model.config.pad_id} - self.ends),)  # some are trained to begin with it
        self.model, what_runs = fastest(model, DTYPES[dtype], tokens=tokens)
        if dtype != "fp32" and self.model is model:
            note(f"not in {dtype}: {what_runs}")

    def stream(self, text: str, choices: Choices) -> Iterator[str]:
        """Yield what is written, piece by piece."""
        ids, room = self.read(text, choices.max_new_tokens)
        written = Written(self.tokenizer, ids if self.continues else [], choices.stops)
        for step in self.write([ids], room, choices):
            for token in step:
                yield written.add(token.id, last=token.end is not None)

    def answers(self, texts: Sequence[str], choices: Choices) -> list[Answer]:
        """Return what is written of each text; together they take little longer than one."""
        read = [self.read(text, choices.max_new_tokens) for text in texts]
        alike = len({room for _, room in read}) == 1  # else some are too long to be answered at full length
        groups = [range(len(texts))] if alike else [range(row, row + 1) for row in range(len(texts))]
        written = [Written(self.tokenizer, ids if self.continues else [], choices.stops) for ids, _ in read]
        ends = [""] * len(texts)
        for group in groups:
            prompts, room = [read[row][0] for row in group], read[group[0]][1]
            for step in self.write(prompts, room, choices.of_row(group[0])):
                for token in step:
                    written[group[token.row]].add(token.id, last=token.end is not None)
                    ends[group[token.row]] = token.end or ""
        return [Answer(text, one.shown, len(one.ids), end) for text, one, end in zip(texts, written, ends)]

    def write(self, prompts: list[list[int]], room: int, choices: Choices) -> Iterator[Any]:
        """Yield the steps of generation."""
        longest = MAX_TOKENS_A_LETTER * (max((len(stop) for stop in choices.stops), default=0) + 1)

        def is_done(ids: Sequence[int]) -> bool:
            if ids[-1] in self.ends:
                return True
            tail = end_of_answer(self.tokenizer, ids, longest) if choices.stops else ""
            return any(stop in tail for stop in choices.stops)

        yield from generate(
            self.model,
            prompts,
            max_new_tokens=room,
            choose=choices.choose,
            adjust=(*self.never, *adjustments(self.settings, len(self.begin or ()), room, self.ends), *choices.adjust),
            stop=is_done if choices.stops else self.ends,
            begin=self.begin,
        )

    def read(self, text: str, n_new: int) -> tuple[list[int], int]:
        """Return the tokens of a text, and how many may be written; what does not fit is left out and said."""
        config, encoded = self.config, self.tokenizer.encode(text)
        ids = list(encoded.ids)
        spans = (span for token, span in zip(ids, encoded.spans) if token == self.tokenizer.unknown_id)
        if unknown := list(dict.fromkeys(repr(text[start:end]) for start, end in spans)):
            more = f" and {len(unknown) - FEW:,} more" * (len(unknown) > FEW)
            note(f"not in the model's vocabulary, and read as unknown: {', '.join(unknown[:FEW])}{more}")
        if isinstance(config, EncoderDecoderConfig):
            if left_out := max(0, len(ids) - config.max_source_len):
                note(f"the model reads {config.max_source_len} pieces at once: the last {left_out:,} are left out")
                ids = self.tokenizer.encode(text, max_len=config.max_source_len).ids
            return ids, min(n_new, config.max_target_len - len(self.begin or ()))
        while ids and encoded.special[len(ids) - 1]:  # what would say that the text has ended
            ids.pop()
        if not ids:
            raise InputError(f"{text!r} holds nothing that this model's tokenizer knows: expected words to go on from")
        if (longest := config.context_len) is None:
            return ids, n_new
        room = min(n_new, max(longest - len(ids), longest // 2))
        left_out = max(0, len(ids) + room - longest)
        if room < n_new or left_out:
            only = f"the first {left_out:,} of the text are left out" if left_out else f"only {room:,} can be written"
            note(f"the model reads and writes {longest:,} pieces in all: {only}")
        return ids[left_out:], room


def choices_of(wanted: Choosing, max_new_tokens: int, seed: int) -> Choices:
    """Return the choices that options ask for; temperature 0 always takes the likeliest token."""
    choose: Choose | Beams = GREEDY
    if wanted.beams is not None:
        choose = Beams(wanted.beams)
    elif wanted.warmth > 0:
        choose = Sampled(
            temperature=wanted.warmth, top_k=wanted.top_k, top_p=wanted.top_p, min_p=wanted.min_p, seed=seed
        )
    penalty = wanted.repetition_penalty
    return Choices(max_new_tokens, choose, () if penalty is None else (RepetitionPenalty(penalty),), wanted.stop)
