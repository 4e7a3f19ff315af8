"""Score a model of novels in bits per character; the numbers of the card are this script's.

    python recipes/novels/score.py MODEL --test prepared/test.jsonl

The model reads each novel in windows that overlap by half, and is asked about the second half of each: so every piece
is guessed from at least half a window of what stood before it, but for the first half window of a novel. The bits of
all pieces are divided by the characters of the text, line breaks included, so that the vocabulary does not matter.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from clearhead import Tokenizer, load
from clearhead.checkpoints import find
from clearhead.models.gpt import GPTForCausalLM


@torch.inference_mode()
def surprises(model: GPTForCausalLM, ids: Sequence[int], *, window: int = 256, batch: int = 16) -> torch.Tensor:
    """Return `-log2 p(ids[i] | what came before)` for i = 1, 2, ...: one number fewer than there are ids."""
    half = window // 2
    n_asked = len(ids) - 1
    n_windows = max(1, math.ceil(n_asked / half) - 1)
    padded = torch.tensor([*ids, *[ids[0]] * ((n_windows + 1) * half + 1 - len(ids))])  # looked at by nobody before
    windows = padded.unfold(0, window + 1, half)
    bits = []
    for some in windows.split(batch):
        hidden = model.gpt(some[:, :-1])
        if not bits:  # nobody else asks about the first half of the first window
            bits.append(_bits(model, hidden[:1, :half], some[:1, 1 : half + 1]))
        bits.append(_bits(model, hidden[:, half:], some[:, half + 1 :]))
    return torch.cat(bits)[:n_asked]


def _bits(model: GPTForCausalLM, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    scores = model.logits(hidden).float().flatten(0, 1)
    return F.cross_entropy(scores, targets.flatten(), reduction="none") / math.log(2)


def score(model: GPTForCausalLM, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    """Return the bits of a whole text, and of how many characters it is."""
    assert tokenizer.end_id is not None
    return float(surprises(model, [tokenizer.end_id, *tokenizer.encode_body(text)]).double().sum()), len(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--test", type=Path, required=True, help="test.jsonl of prepare.py")
    args = parser.parse_args()
    model, tokenizer = load(args.model), Tokenizer.load(find(args.model))
    assert isinstance(model, GPTForCausalLM)
    bits, characters = 0.0, 0
    for line in args.test.read_text(encoding="utf-8").splitlines():
        novel = json.loads(line)
        found, n = score(model, tokenizer, novel["text"])
        bits, characters = bits + found, characters + n
        print(f"{found / n:6.3f} bits per character of {n:9,}  {novel['novel']}", flush=True)
    print(f"{bits / characters:6.3f} bits per character of {characters:9,}  in all")


if __name__ == "__main__":
    main()
