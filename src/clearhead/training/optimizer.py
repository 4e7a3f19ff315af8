"""AdamW in groups, Muon where asked for, and the learning rate as a function of the step.

Three rules decide a parameter's group. *Decay:* matrices that multiply are pulled towards zero; norms, biases and
embeddings are not (every vector, and every table one looks rows up in). *Depth:* with `layer_decay` d, the k-th layer
from the output learns at `d**k` times the rate, since lower layers know more that must not be forgotten (Howard &
Ruder 2018, section 3.2; Clark et al. 2020, appendix A). *Order:* groups and their members follow the model's.

Next: `loop.py`.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from clearhead.training.recipe import OptimizerSection, ScheduleSection


def parameter_groups(model: nn.Module, section: OptimizerSection) -> list[dict[str, Any]]:
    """Return the groups: `params`, their `names`, `weight_decay`, `rate` (their share of `lr`), and `muon`."""
    looked_up = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    n_layers = 1 + max(
        (layer for layer in map(_layer, dict(model.named_parameters())) if layer is not None), default=-1
    )
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = section.layer_decay ** depth(name, n_layers)
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in looked_up else section.weight_decay
        muon = section.name == "muon" and decides_direction(name, parameter)
        empty = {"params": [], "names": [], "weight_decay": decay, "rate": rate, "muon": muon}
        group = groups.setdefault((rate, decay, muon), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def depth(name: str, n_layers: int) -> int:
    """Return how many layers lie between a parameter and the output: 0 for a head, n_layers + 1 for embeddings."""
    layer = _layer(name)
    if layer is not None:
        return n_layers - layer
    return n_layers + 1 if "embeddings." in name else 0


def _layer(name: str) -> int | None:
    found = re.search(r"\bblocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def decides_direction(name: str, parameter: torch.Tensor) -> bool:
    """Return whether Muon should learn this: a matrix between hidden states, so no embedding and no head."""
    return parameter.ndim == 2 and _layer(name) is not None and name.endswith(".weight")


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
