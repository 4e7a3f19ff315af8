"""Leave out of a BERT checkpoint the word pieces that a list of texts hardly uses, and halve its numbers.

    python recipes/sentiment/prune.py runs/sentiment --texts prepared/*.txt prepared/*.jsonl --out model

A word whose piece is gone is written in smaller ones, as WordPiece writes any word it does not know. Every single
character, every special token and every piece that occurs `--least` times stay. Numbers are stored in fp16.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from clearhead import BertForSequenceClassification, Tokenizer, load, save
from clearhead.checkpoints import find, with_head


def read(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines


def pruned_tokenizer(tokenizer: Tokenizer, keep: list[int]) -> Tokenizer:
    """Return the tokenizer whose vocabulary is the pieces `keep`, numbered anew in that order."""
    import tokenizers

    described = json.loads(tokenizer.backend.to_str())
    names = {number: piece for piece, number in described["model"]["vocab"].items()}
    number_of = {names[old]: new for new, old in enumerate(keep)}
    described["model"]["vocab"] = number_of
    for token in described["added_tokens"]:
        token["id"] = number_of[token["content"]]
    for name, token in described["post_processor"]["special_tokens"].items():
        token["ids"] = [number_of[name]]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(described)), tokenizer.settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--least", type=int, default=2, help="occurrences that keep a piece")
    args = parser.parse_args()
    model, tokenizer = load(args.model), Tokenizer.load(find(args.model))
    assert isinstance(model, BertForSequenceClassification)

    counts = Counter[int]()
    for path in args.texts:
        for encoded in tokenizer.encode_many(read(path)):
            counts.update(encoded.ids)
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    special = set(tokenizer.special_ids)
    keep = sorted(
        number
        for piece, number in vocabulary.items()
        if number in special or counts[number] >= args.least or len(piece.removeprefix("##")) == 1
    )
    config = replace(model.config, vocab_size=len(keep), pad_id=keep.index(model.config.pad_id))
    state = model.state_dict()
    words = "bert.embeddings.words.weight"
    smaller = with_head(model, model.config.labels)  # keeps the family's own config keys
    smaller.config = smaller.bert.config = config
    smaller.bert.embeddings.words = torch.nn.Embedding(len(keep), config.d_model)
    smaller.load_state_dict({**state, words: state[words][keep]})
    save(smaller, args.out, tokenizer=pruned_tokenizer(tokenizer, keep), dtype=torch.float16)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{len(keep):,} of {len(vocabulary):,} pieces kept, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
