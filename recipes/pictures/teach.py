"""A small convolutional network learns Fashion-MNIST, and its opinion becomes what the pictures recipe trains on.

Distillation from a convolutional teacher (Touvron et al. 2020, DeiT, section 4): a convolution knows from the start
that neighbours belong together and that a thing may stand anywhere; a Vision Transformer has to learn it from
pictures, and 55,000 are few. The target of a picture is half its label, half the teacher's opinion, averaged over the
picture, its mirror image and four shifts.

Reads the four idx files of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist, MIT; Debian package
dataset-fashion-mnist) below ``--data``; the test files are not touched. 5,000 training pictures are set aside, the same
ones for every seed: the teacher never learns from them. Writes to ``--out``:

* ``train.npz``  55,000 pictures: ``images`` (uint8), ``targets`` (one probability a label)
* ``valid.npz``   5,000 pictures: ``images`` (uint8), ``labels``

Usage: python recipes/pictures/teach.py --data FOLDER --out prepared
"""

import argparse
import gzip
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_VALID = 5_000
VIEWS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # shifts, in pixels


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the pictures (n, 28, 28) and labels of a split, as idx files hold them."""
    images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    pictures = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28).copy())
    return pictures, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(*conv(width, width), *conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def conv(n_in: int, n_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()


def teacher(width: int = 48) -> nn.Sequential:
    """Return a network of 0.3 M parameters: 28 x 28, 14 x 14, 7 x 7, mean."""
    return nn.Sequential(
        *conv(1, width * 2 // 3),
        *conv(width * 2 // 3, width, stride=2),
        Residual(width),
        *conv(width, 2 * width, stride=2),
        Residual(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    ).to(memory_format=torch.channels_last)


def shaken(images: Tensor) -> Tensor:
    """Return every picture moved by up to two pixels, and half of them mirrored."""
    n, size = len(images), images.shape[-1]
    rows, columns = (torch.randint(0, 5, (n, 1)) + torch.arange(size) for _ in range(2))
    moved = F.pad(images, (2, 2, 2, 2))[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.where(torch.rand(n, 1, 1) < 0.5, moved.flip(-1), moved)


def pixels(images: Tensor) -> Tensor:
    return ((images.float() / 255 - 0.286) / 0.353).unsqueeze(1).contiguous(memory_format=torch.channels_last)


def fit(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, lr: float = 0.1, size: int = 128) -> None:
    """Train by SGD with Nesterov's momentum; the rate rises for a fifth of the steps and falls to nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    n_steps = epochs * (len(images) // size)
    began = time.perf_counter()
    for step in range(n_steps):
        if step % (len(images) // size) == 0:
            order = torch.randperm(len(images))
        rows = order[step % (len(images) // size) * size :][:size]
        done = step / n_steps
        share = done / 0.2 if done < 0.2 else (1 + math.cos(math.pi * (done - 0.2) / 0.8)) / 2
        optimizer.param_groups[0]["lr"] = lr * share
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(pixels(shaken(images[rows])))
        loss = F.cross_entropy(scores.float(), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}/{n_steps}  loss {loss:.3f}  {time.perf_counter() - began:.0f} s", flush=True)


@torch.no_grad()
def opinion(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean of the probabilities given to ten views of each picture."""
    model.eval()
    found = []
    for some in images.split(500):
        wide = F.pad(some, (1, 1, 1, 1))
        views = [wide[:, 1 + down :, 1 + right :][:, :28, :28] for down, right in VIEWS]
        views += [view.flip(-1) for view in views]
        with torch.autocast("cpu", torch.bfloat16):
            found.append(torch.stack([model(pixels(view)).float().softmax(-1) for view in views]).mean(0))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=48, help="channels of the middle layers")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    images, labels = read(arguments.data, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    valid, train = order[:N_VALID], order[N_VALID:]
    torch.manual_seed(arguments.seed)
    model = teacher(arguments.width)
    print(f"teacher: {sum(p.numel() for p in model.parameters()):,} parameters")
    fit(model, images[train], labels[train], epochs=arguments.epochs)
    taught, judged = opinion(model, images[train]), opinion(model, images[valid])
    for name, probabilities, rows in (("train", taught, train), ("valid", judged, valid)):
        right = (probabilities.argmax(-1) == labels[rows]).float().mean()
        print(f"teacher: {100 * right:.2f} % of {name}, sure by {probabilities.amax(-1).mean():.3f} on average")
    arguments.out.mkdir(parents=True, exist_ok=True)
    targets = (taught + F.one_hot(labels[train], 10)) / 2
    np.savez_compressed(arguments.out / "train.npz", images=images[train].numpy(), targets=targets.numpy())
    np.savez_compressed(arguments.out / "valid.npz", images=images[valid].numpy(), labels=labels[valid].numpy())


if __name__ == "__main__":
    main()
