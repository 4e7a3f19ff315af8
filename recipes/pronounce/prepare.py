"""Build what the pronounce recipe reads from the CMU Pronouncing Dictionary 0.7a (2-clause BSD).

Reads ``cmudict/cmudict-0.7a.txt.xz`` (or ``.txt``) below ``--data`` or the environment variable CLEARHEAD_DATA: lines
``WORD N PH0 PH1 ...``, as in nltk_data, packages/corpora/cmudict.zip (https://github.com/nltk/nltk_data).

Writes to ``--out``

* ``train.tsv``, ``valid.tsv``, ``test.tsv``: columns ``text`` (a word in lower-case) and ``target_text`` (its phonemes,
  vowels with their stress), one line a pronunciation;
* ``start/``: ``config.json``, the sizes of the model in transformers' words, and ``tokenizer.json``.

The split is by word, so that no pronunciation of a test word was trained on, and fixed: a word's place is the hash of
its spelling, whatever else the file holds. Of 100 words 5 are tested, 5 validated. As everywhere in the literature,
*walk* may be trained on and *walks* tested.

Left out: words with anything but letters, apostrophes, hyphens and full stops (94 of 123,455, like *&AMPERSAND*).

Usage: python recipes/pronounce/prepare.py --out DIR [--data DIR]
"""

import argparse
import hashlib
import json
import lzma
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz'-."
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONEMES = (*CONSONANTS, *(vowel + stress for vowel in VOWELS for stress in "012"))
PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, START, END, UNKNOWN)

CONFIG = {  # small, and as transformers' MarianMTModel has it: norms after, sines for positions
    "architectures": ["MarianMTModel"],
    "model_type": "marian",
    "d_model": 256,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "activation_function": "relu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "pad_token_id": SPECIAL.index(PAD),
    "decoder_start_token_id": SPECIAL.index(START),
    "eos_token_id": SPECIAL.index(END),
    "forced_eos_token_id": None,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "share_encoder_decoder_embeddings": True,
    "static_position_embeddings": True,
}


def read_dictionary(path: Path) -> dict[str, list[list[str]]]:
    """Return the pronunciations of every word that is kept, in lower-case, in the file's order."""
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("latin-1")
    found: dict[str, list[list[str]]] = {}
    for word, _, *phonemes in map(str.split, text.splitlines()):
        word = word.lower()
        if not re.fullmatch(r"[a-z'.-]*[a-z][a-z'.-]*", word) or not set(phonemes) <= set(PHONEMES):
            continue  # one entry lacks a stress digit
        listed = found.setdefault(word, [])
        if phonemes not in listed:
            listed.append(phonemes)
    return found


def part(word: str) -> str:
    """Return where a word belongs: "test", "valid" or "train"."""
    place = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) % 100
    return "test" if place < 5 else "valid" if place < 10 else "train"


def build_tokenizer() -> str:
    """Return tokenizer.json: letters one by one, phonemes whole, the end mark after either.

    A phoneme is found before anything else, and only where it stands alone; what is left loses its accents, is
    lower-cased and cut into letters. No decoder: pieces come back joined by spaces.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = (*SPECIAL, *LETTERS, *PHONEMES)
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    plain = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Replace("’", "'"), normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(plain)
    split = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, pieces.index(END))]
    )
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens([AddedToken(phoneme, single_word=True, normalized=False) for phoneme in PHONEMES])
    return str(backend.to_str(pretty=True))


def write_start(folder: Path) -> None:
    """Write the folder that the recipe starts from."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "vocab_size": len(SPECIAL) + len(LETTERS) + len(PHONEMES)}
    config["decoder_vocab_size"] = config["vocab_size"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": START,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": CONFIG["max_position_embeddings"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(build_tokenizer(), encoding="utf-8")


def write_pairs(path: Path, pairs: Iterable[tuple[str, list[str]]]) -> int:
    """Write one file and return how many lines it has below its header."""
    lines = [f"{word}\t{' '.join(phonemes)}\n" for word, phonemes in pairs]
    path.write_text("text\ttarget_text\n" + "".join(lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CLEARHEAD_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.data is None:
        sys.exit("give --data DIR or set CLEARHEAD_DATA: the folder that holds cmudict/")
    source = args.data / "cmudict" / "cmudict-0.7a.txt.xz"
    if not source.is_file():
        source = source.with_suffix("")
    words = read_dictionary(source)
    write_start(args.out / "start")
    for name in ("train", "valid", "test"):
        chosen = {word: listed for word, listed in words.items() if part(word) == name}
        pairs = [(word, phonemes) for word, listed in chosen.items() for phonemes in listed]
        print(f"{name}.tsv: {len(chosen):,} words, {write_pairs(args.out / f'{name}.tsv', pairs):,} pronunciations")


if __name__ == "__main__":
    main()
