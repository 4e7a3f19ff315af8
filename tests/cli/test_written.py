"""An answer's text comes letter by letter, whatever pieces its letters are in, and ends before a stop."""

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from clearhead.cli.written import BROKEN, Written, end_of_answer
from clearhead.data.tokenizer import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PAIRS = [
    ("lo", " lo lo"),
    ("a b", "lo"),
    ("中文字符", "符号"),  # twelve bytes before the answer: the last eight begin within a letter
    ("lo 中文", "字 lo 符"),
    ("😀😀😀", "😀 é 中"),
    ("é", "é"),
    ("a\ufffd", "\ufffd中"),  # a replacement character that somebody wrote
]


def llama() -> Tokenizer:
    """Return a tokenizer like Llama 2's: what the vocabulary lacks is spelled in bytes."""
    vocab = {word: i for i, word in enumerate(["<unk>", *BYTES, *"▁ablo", "lo", "▁lo"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("l", "o"), ("▁", "lo")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, {})


def byte_level() -> Tokenizer:
    """Return a tokenizer like GPT-2's, every byte a piece."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizer(backend, {})


KINDS = {"byte fallback": llama(), "byte level": byte_level()}


def pieces(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of what follows it."""
    before, both = tokenizer.encode_body(prompt), tokenizer.encode_body(prompt + answer)
    assert both[: len(before)] == before
    return before, both[len(before) :]


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_an_answer_comes_letter_by_letter_after_every_prompt(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    before, ids = pieces(tokenizer, prompt, answer)
    written = Written(tokenizer, before, [])
    shown = ""
    for i, token in enumerate(ids):
        shown += written.add(token, last=i == len(ids) - 1)
        assert answer.startswith(shown)
    assert shown == written.shown == answer
    assert written.ids == ids


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize(
    ("answer", "stop", "expected"),
    [("lo 中文 lo", "文", "lo 中"), ("中文字符中文", "字符", "中文"), (" lo", " lo", ""), ("a😀b", "😀", "a"),
     ("符号", "号符", "符号")],
)  # fmt: skip
def test_an_answer_ends_before_a_stop_of_any_letters(
    tokenizer: Tokenizer, answer: str, stop: str, expected: str
) -> None:
    before, ids = pieces(tokenizer, "lo 中", answer)
    written = Written(tokenizer, before, [stop])
    longest = 4 * len(stop) + 4
    for n in range(1, len(ids) + 1):
        written.add(ids[n - 1], last=n == len(ids))
        if stops := stop in end_of_answer(tokenizer, ids[:n], longest):
            break
    assert stops == (stop in answer)
    assert written.shown == expected


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=list(KINDS))
def test_an_answer_cut_off_within_a_letter_keeps_the_letters_before(tokenizer: Tokenizer) -> None:
    before, ids = pieces(tokenizer, "中", "文字")
    written = Written(tokenizer, before, [])
    for token in ids[:-2]:
        assert BROKEN not in written.add(token, last=False)
    written.add(ids[-2], last=True)
    assert written.shown.rstrip(BROKEN) == "文" and written.shown.endswith(BROKEN)


def test_the_work_a_token_does_not_grow_with_the_answer() -> None:
    tokenizer, most = llama(), 0
    decode = tokenizer.decode

    def counting(ids: list[int]) -> str:
        nonlocal most
        most = max(most, len(ids))
        return decode(ids)

    tokenizer.decode = counting  # type: ignore[method-assign, assignment]
    written = Written(tokenizer, tokenizer.encode_body("lo " * 50), ["never"])
    for token in tokenizer.encode_body("lo 中文 " * 50):
        written.add(token, last=False)
    assert most <= 16
