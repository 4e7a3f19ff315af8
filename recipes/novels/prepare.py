"""Make the training files of the novels recipe, and the folder its model starts from.

Reads ``eltec-eng/eltec-eng-txt.tar.xz`` and ``eltec-eng/metadata.tsv`` below ``--data`` (or the environment variable
CLEARHEAD_DATA): 99 English novels of 1840-1920, one .txt a novel, one paragraph a line, in the public domain.

Writes to ``--out``:

* ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``  the novels, normalised, ``{"text": ..., "novel": ...}`` each
* ``start/``  ``tokenizer.json``, a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) trained on train.jsonl
  alone, and ``config.json``: what is to be trained, in transformers' words

Normalised means: the many ways to set a quotation mark, an apostrophe, a hyphen or a dash become one each, and the
spaces that some printers put around a dash or before a question mark are gone.  What a model is told of a text should
be the text, not who scanned it.  Scores are of normalised text.

The novels of ``valid`` and ``test`` were chosen by hand, before any model was trained: known and less known, spread
over the years, by authors of whom there is nothing else here.

Usage: python recipes/novels/prepare.py --data DIR --out DIR
"""

import argparse
import csv
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

SPLIT = {
    "test": {
        "ENG18471_Bronte": "Emily Brontë, Wuthering Heights, 1847",
        "ENG18621_Braddon": "Mary Elizabeth Braddon, Lady Audley's Secret, 1862",
        "ENG18860_Hardy": "Thomas Hardy, The Mayor of Casterbridge, 1886",
        "ENG18900_Doyle": "Arthur Conan Doyle, The Sign of Four, 1890",
        "ENG19100_Forster": "Edward Morgan Forster, Howards End, 1910",
    },
    "valid": {
        "ENG18552_Kavanagh": "Julia Kavanagh, Rachel Gray, 1856",
        "ENG18961_Griffiths": "Arthur Griffiths, The Rome Express, 1896",
        "ENG19170_Conrad": "Joseph Conrad, The Shadow-Line, 1917",
    },
}
END = "<|endoftext|>"
VOCAB_SIZE = 8_192
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 1_024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CHARACTERS = str.maketrans(
    {"‘": "'", "’": "'", "´": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "–": "—", "―": "—", "…": "..."}
    | dict.fromkeys("\u00ad\u2060\ufeff", "")  # soft hyphens and other signs nobody sees
)


def normalise(text: str) -> str:
    """Return `text` with one way to set each sign; lines stay lines."""
    text = text.translate(CHARACTERS).replace("--", "—")
    text = re.sub(r" *— *", "—", text)
    text = re.sub(r" +([,;:?!])", r"\1", text)
    return "\n".join(line for line in (re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")) if line)


def read_novels(archive: Path) -> dict[str, str]:
    """Return the normalised novels by name."""
    with tarfile.open(archive) as files:
        members = sorted((m for m in files.getmembers() if m.name.endswith(".txt")), key=lambda m: m.name)
        return {Path(m.name).stem: normalise(files.extractfile(m).read().decode("utf-8")) for m in members}  # type: ignore[union-attr]


def read_authors(metadata: Path) -> dict[str, str]:
    """Return who wrote each novel, by its name: the number of a library where there is one, else the surname."""
    with metadata.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return {row["filename"].strip(): re.sub(r"\D", "", row["author-ids"]) or row["filename"] for row in rows}


def check_authors(split: dict[str, list[str]], authors: dict[str, str]) -> None:
    """Refuse a split in which training has read the author of a held-out novel."""
    read = {authors[name] for name in split["train"]}
    if known := [name for part in SPLIT for name in split[part] if authors[name] in read]:
        sys.exit(f"training would read the authors of {', '.join(known)}")


def train_tokenizer(novels: list[str]) -> Any:
    """Return a byte-level BPE of VOCAB_SIZE pieces; the first is END."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((line for novel in novels for line in novel.splitlines(keepends=True)), trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CLEARHEAD_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data or the environment variable CLEARHEAD_DATA: the folder that holds eltec-eng/")
    novels = read_novels(args.data / "eltec-eng" / "eltec-eng-txt.tar.xz")
    split = {part: list(names) for part, names in SPLIT.items()}
    split["train"] = [name for name in novels if not any(name in names for names in SPLIT.values())]
    check_authors(split, read_authors(args.data / "eltec-eng" / "metadata.tsv"))

    (args.out / "start").mkdir(parents=True, exist_ok=True)
    for part, names in split.items():
        rows = [json.dumps({"text": novels[name], "novel": name}, ensure_ascii=False) + "\n" for name in names]
        (args.out / f"{part}.jsonl").write_text("".join(rows), encoding="utf-8")
        print(f"{part:6s} {len(names):3d} novels, {sum(len(novels[name]) for name in names):11,} characters")
    start = args.out / "start"
    train_tokenizer([novels[name] for name in split["train"]]).save(str(start / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END, "pad_token": END}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1_024, **special}
    for name, content in (("config.json", MODEL), ("tokenizer_config.json", settings)):
        (start / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
