"""What a checkpoint's generation_config.json becomes when `translate` and `transcribe` write."""

from collections.abc import Collection

from clearhead.checkpoints.endings import GENERATION
from clearhead.checkpoints.generation_settings import GenerationSettings
from clearhead.cli.output import note
from clearhead.generation import Beams, Never, NoRepeats, RepetitionPenalty
from clearhead.generation.constraints import Forced, NeverSequences, NotBefore
from clearhead.generation.sampling import GREEDY, Adjust, Choose


def adjustments(settings: GenerationSettings, n_begin: int, n_new: int, ends: Collection[int]) -> tuple[Adjust, ...]:
    """Return what changes the scores, in the order of transformers.

    Args:
        settings: Of the checkpoint.
        n_begin: Tokens that an answer begins with and that are not written.
        n_new: Tokens that are written at most.
        ends: Tokens that end an answer.
    """
    found: list[Adjust] = []
    if settings.repetition_penalty != 1:
        found.append(RepetitionPenalty(settings.repetition_penalty))
    if settings.no_repeat:
        found.append(NoRepeats(settings.no_repeat))
    if words := [word for word in settings.bad_words if not (len(word) == 1 and word[0] in ends)]:
        found.append(NeverSequences(words))
    if (shortest := n_begin + settings.min_new if settings.min_new else settings.min_len) > n_begin:
        found.append(NotBefore(sorted(ends), shortest))
    if settings.forced_first:
        found.append(Forced({n_begin + i: (token,) for i, token in enumerate(settings.forced_first)}))
    if settings.forced_last:
        found.append(Forced({n_begin + n_new - 1: settings.forced_last}))
    if settings.suppressed:
        found.append(Never(settings.suppressed))
    if settings.suppressed_first:
        first = n_begin + len(settings.forced_first)
        found.append(NotBefore(settings.suppressed_first, first + 1, first))
    return tuple(found)


def beams_of(settings: GenerationSettings, wanted: int | None) -> Choose | Beams:
    """Return how answers are searched: with the beams that a person wants, or else the checkpoint."""
    n = settings.beams if wanted is None else wanted
    if n == 1:
        return GREEDY
    return Beams(n, settings.length_penalty, settings.early_stopping)


def most_new(settings: GenerationSettings, n_begin: int) -> int | None:
    """Return how many tokens the checkpoint lets an answer have, or None where it does not say."""
    if settings.max_new is not None:
        return settings.max_new
    return None if settings.max_len is None else max(settings.max_len - n_begin, 1)


def say_unread(settings: GenerationSettings) -> None:
    """Say what of a generation_config.json is not honored."""
    if settings.unread:
        note(f"{GENERATION}: not done here: {', '.join(settings.unread)}")
