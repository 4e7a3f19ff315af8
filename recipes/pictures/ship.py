"""Make a trained run a folder to ship: half precision, with the preprocessing beside it.

python recipes/pictures/ship.py runs/pictures --out pictures
"""

import argparse
from pathlib import Path

import torch

from clearhead import load, save
from clearhead.data.images import ImageProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    save(load(args.run), args.out, tokenizer=ImageProcessor.load(args.run), dtype=torch.float16)


if __name__ == "__main__":
    main()
