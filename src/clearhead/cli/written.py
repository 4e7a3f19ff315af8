"""The text of an answer while its tokens come: what of it is certain, and where it is to stop.

A token is not a letter. Tokenizers that spell rare letters in bytes, byte-level ones and those with a byte fallback
(Llama 2), give one letter up to four tokens; decoded before the last of them has come, it is the replacement character
U+FFFD, and a byte fallback then replaces the letters right before it as well. And some decoders drop the space that
begins a text. So tokens are decoded behind the letter before them, and shown once their letter is whole.
"""

from collections.abc import Sequence

from clearhead.data.tokenizer import Tokenizer

N_CONTEXT = 8  # tokens of the prompt that an answer is decoded behind
MAX_TOKENS_A_LETTER = 4  # bytes of a letter in UTF-8
BROKEN = "\ufffd"  # what a tokenizer makes of part of a letter


class Written:
    """One answer in the making: `add` takes its tokens and returns what can be shown more.

    Part of a letter, and what may become one of the stops, is not shown yet.

    Attributes:
        ids: The tokens of the answer.
        shown: Its text as far as it was shown.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        """Begin an answer that goes on after `prompt`, and ends before any of `stops`."""
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.text = self.shown = ""  # all that is decoded, and the part of it that is shown
        self.before = list(prompt[whole_letters(tokenizer, prompt, N_CONTEXT) :])  # tokens of the last text decoded
        self.new: list[int] = []  # tokens behind these, not decoded yet

    def add(self, token: int, *, last: bool) -> str:
        """Take in a token and return what can be shown more; all there is after the `last`."""
        self.ids.append(token)
        self.new.append(token)
        text = decoded_behind(self.tokenizer, self.before, self.new)
        if text and (last or not text.endswith(BROKEN)):
            self.text += text
            self.before, self.new = self.new, []
        certain = self.text
        if cuts := [certain.find(stop) for stop in self.stops if stop in certain]:
            certain = certain[: min(cuts)]
        elif not last:
            certain = certain[: len(certain) - max((held_back(certain, stop) for stop in self.stops), default=0)]
        more = certain[len(self.shown) :]
        self.shown += more
        return more


def decoded_behind(tokenizer: Tokenizer, before: Sequence[int], new: Sequence[int]) -> str:
    """Return the text that the tokens `new` add behind the tokens `before`."""
    already, both = tokenizer.decode(before), tokenizer.decode([*before, *new])
    if both.startswith(already):
        return both[len(already) :]
    return tokenizer.decode(new)  # bytes that are no letter made the letters before them unreadable, too


def whole_letters(tokenizer: Tokenizer, ids: Sequence[int], n: int) -> int:
    """Return where to begin to decode at least the last `n` of `ids`, so as not to begin within a letter."""
    latest = max(len(ids) - n, 0)
    starts = range(latest, max(latest - MAX_TOKENS_A_LETTER, -1), -1)
    return next((start for start in starts if not tokenizer.decode(ids[start:]).startswith(BROKEN)), latest)


def end_of_answer(tokenizer: Tokenizer, ids: Sequence[int], n: int) -> str:
    """Return the text of at least the last `n` tokens of an answer, as it stands behind other text.

    An answer that is decoded alone may lack the space that it begins with, so it is decoded behind its first letter.
    """
    ids = ids[whole_letters(tokenizer, ids, n) :]
    firsts = (ids[:length] for length in range(1, MAX_TOKENS_A_LETTER + 1))
    first = next((first for first in firsts if not tokenizer.decode(first).endswith(BROKEN)), ids[:1])
    return decoded_behind(tokenizer, first, ids)


def held_back(text: str, stop: str) -> int:
    """Return how many letters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
