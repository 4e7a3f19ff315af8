"""Who decays, who learns how fast, and when."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearhead.models.bert import BertConfig, BertForMaskedLM, BertForSequenceClassification
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.models.modernbert import ModernBertConfig, ModernBertForMaskedLM
from clearhead.models.vit import ViTConfig, ViTForImageClassification
from clearhead.training.optimizer import build_optimizers, lr_share, parameter_groups, set_lr
from clearhead.training.recipe import OptimizerSection, ScheduleSection

TINY = {"d_model": 16, "n_heads": 2, "d_ff": 8}


def by_name(config: BertConfig, key: str, **section: float) -> dict[str, float]:
    groups = parameter_groups(BertForSequenceClassification(config), OptimizerSection(lr=1.0, **section))
    return {name: group[key] for group in groups for name in group["names"]}


def test_only_matrices_that_multiply_decay(config: BertConfig) -> None:
    decay = by_name(config, "weight_decay", weight_decay=0.1)
    model = BertForSequenceClassification(config)
    multiply = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert decay == {name: 0.1 if name in multiply else 0.0 for name, _ in model.named_parameters()}


def test_lower_layers_learn_slower(config: BertConfig) -> None:
    rate = by_name(config, "rate", layer_decay=0.5)
    assert rate["classifier.weight"] == rate["bert.pooler.bias"] == 1.0
    assert rate["bert.blocks.1.attention.q_proj.weight"] == 0.5
    assert rate["bert.blocks.0.feed_forward_norm.bias"] == 0.25
    assert rate["bert.embeddings.words.weight"] == rate["bert.embeddings.norm.weight"] == 0.125


def test_lower_layers_learn_slower_in_every_model(config: BertConfig) -> None:
    words = {"vocab_size": 9, "n_layers": 2, **TINY}
    answers = EncoderDecoderConfig(
        vocab_size=9, n_encoder_layers=2, n_decoder_layers=1, positions="learned", logit_bias=True, **TINY
    )
    expected: list[tuple[torch.nn.Module, dict[str, float]]] = [
        (BertForMaskedLM(config), {"bert.embeddings.words.weight": 0.125, "dense.weight": 1, "bias": 1}),
        (GPTForCausalLM(GPTConfig(**words)), {"gpt.words": 0.125, "gpt.positions": 0.125, "gpt.norm": 1}),
        (
            ModernBertForMaskedLM(ModernBertConfig(pad_id=0, **words)),
            {"bert.words": 0.125, "bert.words_norm": 0.125, "bias": 1},
        ),
        (
            EncoderDecoder(answers),
            {"words": 0.0625, "encoder.blocks.0": 0.125, "encoder.blocks.1": 0.25, "decoder.blocks.0": 0.5}
            | {"encoder.positions": 0.0625, "decoder.positions": 0.25, "logit_bias": 1},
        ),
    ]
    for model, shares in expected:
        groups = parameter_groups(model, OptimizerSection(lr=1.0, layer_decay=0.5))
        rate = {name: group["rate"] for group in groups for name in group["names"]}
        assert {start: {r for name, r in rate.items() if name.startswith(start)} for start in shares} == {
            start: {share} for start, share in shares.items()
        }


def test_tables_that_are_looked_up_do_not_decay_whatever_they_are_made_of() -> None:
    pictures = ViTConfig(image_size=(8, 8), patch_size=4, n_registers=1, labels=("a", "b"), **TINY)
    distances = EncoderDecoderConfig(vocab_size=9, positions="relative", **TINY)
    for model in (ViTForImageClassification(pictures), EncoderDecoder(distances)):
        groups = parameter_groups(model, OptimizerSection(lr=1.0, weight_decay=0.1))
        decaying = {name for group in groups if group["weight_decay"] for name in group["names"]}
        multiply = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
        assert decaying == {f"{name}.weight" for name in multiply}


def test_frozen_parameters_are_left_out(config: BertConfig) -> None:
    model = BertForSequenceClassification(config)
    model.bert.embeddings.requires_grad_(False)
    names = [name for group in parameter_groups(model, OptimizerSection(lr=1.0)) for name in group["names"]]
    assert names and not [name for name in names if "embeddings" in name]


def test_every_group_gets_its_share_of_the_rate(config: BertConfig) -> None:
    (optimizer,) = build_optimizers(BertForSequenceClassification(config), OptimizerSection(lr=1.0, layer_decay=0.5))
    set_lr(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.1, 0.05, 0.025}


@given(
    n_steps=st.integers(1, 500),
    warmup=st.floats(0, 1),
    decay=st.sampled_from(["linear", "cosine", "none"]),
    end=st.floats(0, 1),
)
def test_the_rate_rises_to_the_whole_and_falls_to_the_end(n_steps: int, warmup: float, decay: str, end: float) -> None:
    section = ScheduleSection(warmup=warmup, decay=decay, end=end)  # type: ignore[arg-type]
    shares = [lr_share(step, n_steps, section) for step in range(n_steps)]
    top = min(round(warmup * n_steps), n_steps - 1)
    assert all(0 <= share <= 1 for share in shares)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert min(shares[top:]) >= end or round(warmup * n_steps) >= n_steps


def test_known_points_of_the_schedules() -> None:
    def share(step: int, decay: str) -> float:
        return lr_share(step, 100, ScheduleSection(warmup=0.2, decay=decay, end=0.1))  # type: ignore[arg-type]

    assert [share(step, "linear") for step in (0, 9, 19, 20, 60)] == pytest.approx([0.05, 0.5, 1, 1, 0.55])
    assert [share(step, "cosine") for step in (20, 60, 40)] == pytest.approx(
        [1, 0.55, 0.1 + 0.45 * (1 + math.sqrt(0.5))]
    )
    assert share(99, "none") == 1.0


def test_muon_learns_the_matrices_inside_the_blocks_and_adamw_the_rest(config: BertConfig) -> None:
    model = BertForSequenceClassification(config)
    adamw, muon = build_optimizers(model, OptimizerSection(lr=0.1, name="muon"))
    names = {name for group in muon.param_groups for name in group["names"]}
    matrices = {name for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}
    assert isinstance(muon, torch.optim.Muon) and names == matrices
    rest = {name for group in adamw.param_groups for name in group["names"]}
    assert rest == {name for name, _ in model.named_parameters()} - matrices
