"""Generation: tokens in, tokens out, one step at a time as they come. It knows no text.

    for step in generate(model, [prompt, another], max_new_tokens=20, choose=Sampled(top_p=0.9, seed=1)):
        for token in step:                       # one for every row that is not done
            print(token.row, token.id, token.logprob)

How a token is chosen is an object: `Greedy()`, `Sampled(...)`, `Beams(...)`. What changes the scores before is a list
of objects: `RepetitionPenalty(1.2)`. A smaller model that guesses ahead is one too: `Draft(small)`.

Every prompt gives what it would give alone: rows have their own positions, masks and chance, and a row that is done
leaves the batch.
Next: `sampling.py` (scores to tokens), `reading.py` (tokens to scores), then `beams.py` and `assisted.py`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from torch import nn

from clearhead.errors import ConfigError
from clearhead.generation.assisted import Draft, assisted
from clearhead.generation.beams import Beams, Hypothesis, beam_search
from clearhead.generation.reading import Opens, Prompt, check, open_reader
from clearhead.generation.sampling import GREEDY, Adjust, Choose, Greedy, Never, NoRepeats, RepetitionPenalty, Sampled
from clearhead.generation.writing import End, Step, Stop, Token, stopper, write

__all__ = [
    "Beams",
    "Draft",
    "Greedy",
    "Hypothesis",
    "Never",
    "NoRepeats",
    "RepetitionPenalty",
    "Sampled",
    "Step",
    "Token",
    "answers",
    "generate",
    "hypotheses",
]


def generate(
    model: nn.Module | Opens,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    choose: Choose | Beams = GREEDY,
    adjust: Sequence[Adjust] = (),
    stop: Collection[int] | Stop = (),
    begin: Sequence[int] | None = None,
    draft: Draft | None = None,
) -> Iterator[Step]:
    """Yield step after step what follows each prompt: a tuple of `Token`s, one for each row that is not done.

    `prompts` are token ids; for an encoder-decoder they are sources, or mel spectrograms, and its answers begin with
    `begin` (None: the model's start token), which is not yielded. An answer ends after `max_new_tokens`, or with a
    token of `stop`, which is yielded; `stop` may also be a function that is told an answer's tokens so far.

    `Beams` know their answer at the end alone: the steps then come all at once. With a `draft`, rows come one after
    another, and a step holds one token.

    Raises at once: ConfigError for a model that cannot write or settings that cannot be, InputError for a prompt
    that cannot be read, ShapeError where prompt and answer are longer than the model reads.
    """
    check_request(max_new_tokens, choose, draft)
    if not prompts:
        return iter(())
    ends = stopper(stop)
    if isinstance(choose, Beams):
        found = hypotheses(model, prompts, choose, max_new_tokens=max_new_tokens, adjust=adjust, stop=stop, begin=begin)
        return told([row[0] for row in found], ends)
    if draft is None:
        return write(open_reader(model, prompts, max_new_tokens, begin), max_new_tokens, choose, adjust, ends)
    for each in (model, draft.model):
        check(each, prompts, begin)

    def one_by_one() -> Iterator[Step]:
        for row, prompt in enumerate(prompts):
            ours, theirs = (open_reader(each, [prompt], max_new_tokens, begin) for each in (model, draft.model))
            yield from assisted(ours, theirs, row, max_new_tokens, draft.n_tokens, choose, adjust, ends)

    return one_by_one()


def hypotheses(
    model: nn.Module | Opens,
    prompts: Sequence[Prompt],
    beams: Beams,
    *,
    max_new_tokens: int,
    adjust: Sequence[Adjust] = (),
    stop: Collection[int] | Stop = (),
    begin: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Return all that beam search found for each prompt, best first; arguments and errors as for `generate`."""
    check_request(max_new_tokens, beams, None)
    if not prompts:
        return []
    reader = open_reader(model, prompts, max_new_tokens, begin)
    return beam_search(reader, beams, max_new_tokens, adjust, stopper(stop), 1 if callable(stop) else len(stop))


def answers(steps: Iterable[Step], n: int) -> list[list[int]]:
    """Return the tokens of each of `n` rows, once all have come."""
    found: list[list[int]] = [[] for _ in range(n)]
    for step in steps:
        for token in step:
            found[token.row].append(token.id)
    return found


def told(found: Sequence[Hypothesis], stop: Stop) -> Iterator[Step]:
    """Yield finished answers as if they were being written."""
    for n in range(max(len(each.ids) for each in found)):
        rows = [(row, each) for row, each in enumerate(found) if n < len(each.ids)]
        yield tuple(Token(row, each.ids[n], each.logprobs[n], ended(each, n, stop)) for row, each in rows)


def ended(answer: Hypothesis, n: int, stop: Stop) -> End:
    """Return why token `n` is the answer's last, if it is."""
    if n + 1 < len(answer.ids):
        return None
    return "stop" if stop(answer.ids) else "length"


def check_request(max_new_tokens: int, choose: Choose | Beams, draft: Draft | None) -> None:
    """Raise ConfigError for what cannot be asked."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if draft is not None and isinstance(choose, Beams):
        raise ConfigError("a draft guesses what one text becomes, beams follow several: pass one of the two")
