"""Make a trained run a folder to ship: half precision, and in its config the piece that ends a text.

    python recipes/novels/ship.py runs/finished --out novels

Other libraries look for that piece in config.json; a run keeps it where our tokenizer does, in tokenizer_config.json.
"""

import argparse
import json
from pathlib import Path

import torch

from clearhead import Tokenizer, load, save
from clearhead.checkpoints import find


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer.load(find(args.run))
    save(load(args.run), args.out, tokenizer=tokenizer, dtype=torch.float16)
    path = args.out / "config.json"
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_id)
    config = {**json.loads(path.read_text(encoding="utf-8")), **ends}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
