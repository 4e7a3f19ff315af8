"""AdamW in groups, Muon where asked for, and the learning rate as a function of the step.

Three rules decide a parameter's group. *Decay:* matrices that multiply are pulled towards zero; norms, biases and
embeddings are not (every vector, and every table one looks rows up in, a picture's positions and a T5's distances
included). *Depth:* with `layer_decay` d, the k-th layer from the output learns at `d**k` times the rate, since lower
layers know more that must not be forgotten (Howard & Ruder 2018, section 3.2; Clark et al. 2020, appendix A). *Order:*
groups and their members follow the model's.

Next: `loop.py`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from clearhead.training.recipe import OptimizerSection, ScheduleSection

MULTIPLY = (nn.Linear, nn.Conv1d, nn.Conv2d)
IN_BLOCK = re.compile(r".*?\bblocks\.\d+\.")  # a parameter's name up to its block's


def parameter_groups(model: nn.Module, section: OptimizerSection) -> list[dict[str, Any]]:
    """Return the groups: `params`, their `names`, `weight_decay`, `rate` (their share of `lr`), and `muon`."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    multiply = {id(module.weight) for module in model.modules() if isinstance(module, MULTIPLY)} - looked_up
    depth = depths([name for name, _ in model.named_parameters()])
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = section.layer_decay ** depth[name]
        decay = section.weight_decay if id(parameter) in multiply else 0.0
        muon = section.name == "muon" and decides_direction(name, parameter)
        empty = {"params": [], "names": [], "weight_decay": decay, "rate": rate, "muon": muon}
        group = groups.setdefault((rate, decay, muon), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def depths(names: Sequence[str]) -> dict[str, int]:
    """Return how many layers lie between each parameter and the output: 0 for a head, one more than all for embeddings.

    `names` are in the model's order, which is the way a text takes: embeddings, blocks, head; of an encoder-decoder
    the words, the encoder's, the decoder's. What stands before a block feeds it, and is one further from the output;
    what is the whole model's own (a bias of the words it guesses) torch names first, and is the head's.
    """
    found: dict[str, int] = {}
    blocks: set[str] = set()
    for name in reversed(names):
        if block := IN_BLOCK.match(name):
            blocks.add(block[0])
        found[name] = 0 if "." not in name else len(blocks) + bool(blocks and not block)
    return found


def decides_direction(name: str, parameter: torch.Tensor) -> bool:
    """Return whether Muon should learn this: a matrix between hidden states, so no embedding and no head."""
    return parameter.ndim == 2 and IN_BLOCK.match(name) is not None and name.endswith(".weight")


def build_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Return AdamW over the model's parameters, fused into one kernel where torch has it, and Muon over its share."""
    groups = parameter_groups(model, section)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    plain, matrices = ([group for group in groups if group["muon"] == muon] for muon in (False, True))
    optimizers: list[torch.optim.Optimizer] = []
    if plain:
        optimizers.append(torch.optim.AdamW(plain, lr=section.lr, betas=section.betas, eps=section.eps, fused=fused))
    if matrices:
        scaled = "match_rms_adamw"
        optimizers.append(torch.optim.Muon(matrices, lr=section.lr, momentum=section.momentum, adjust_lr_fn=scaled))
    return optimizers


def lr_share(step: int, n_steps: int, section: ScheduleSection) -> float:
    """Return the share of the learning rate that step `step` of `n_steps` gets, 0 <= step < n_steps.

    Rises by equal amounts to 1 over the first `warmup * n_steps` steps, then falls to `end`: along a line, along half
    a cosine (Loshchilov & Hutter 2017), or not at all. A pure function: a resumed run needs to remember nothing.
    """
    n_warmup = round(section.warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "none": 1.0}[section.decay]
    return section.end + (1 - section.end) * left


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]


def named_parameters(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the parameters with their names, in the optimizer's order."""
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"])
