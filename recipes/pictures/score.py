"""Score a model on Fashion-MNIST's 10,000 test pictures: accuracy, and which labels are taken for which.

Usage: python recipes/pictures/score.py pictures --data FOLDER [--json]

MODEL is a folder or the name of a default; FOLDER holds t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from clearhead.checkpoints import find, load
from clearhead.data.images import ImageProcessor
from clearhead.data.pictures import Pictures, read_pictures

TEST = "t10k-images-idx3-ubyte.gz"


@torch.inference_mode()
def confusion(model: torch.nn.Module, processor: ImageProcessor, pictures: Pictures) -> Tensor:
    """Return how many pictures of each label (row) were given each label (column)."""
    labels = pictures.targets.shape[1]
    table = torch.zeros(labels, labels, dtype=torch.long)
    for pixels, targets in zip(pictures.pixels.split(500), pictures.targets.split(500)):
        given = model(processor.normalise(pixels)).argmax(-1)
        table.index_put_((targets.argmax(-1), given), torch.ones(len(given), dtype=torch.long), accumulate=True)
    return table


def score(name: str, data: Path) -> dict[str, object]:
    folder = find(name)
    model, processor = load(folder), ImageProcessor.load(folder)
    labels = model.config.labels
    table = confusion(model, processor, read_pictures(data / TEST, processor, labels))
    return {
        "accuracy": table.diagonal().sum().item() / table.sum().item(),
        "pictures": table.sum().item(),
        "recall": {label: row[i].item() / row.sum().item() for i, (label, row) in enumerate(zip(labels, table))},
        "confusion": table.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or the name of a model that ships")
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = score(arguments.model, arguments.data)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"accuracy {100 * result['accuracy']:.2f} % of {result['pictures']:,} test pictures")
    for (label, share), row in zip(result["recall"].items(), result["confusion"]):
        print(f"  {label:<12} {100 * share:5.1f} %   " + " ".join(f"{n:4}" for n in row))


if __name__ == "__main__":
    main()
