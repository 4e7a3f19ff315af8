"""The packed encoder is the model, to rounding: on random shapes of every family, on real weights, on ragged rows.

In float64 the two must agree to 1e-12, which no mistake in the algebra survives; then float32 and bfloat16.
"""

import copy
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.block import ACTIVATIONS, Block, FeedForward, pre_norm
from clearhead.checkpoints import load
from clearhead.errors import ConfigError, ShapeError
from clearhead.models.bert import BertConfig, BertForMaskedLM, BertForSequenceClassification
from clearhead.packed import OneDNNLinear, PlainLinear, onednn_obstacle, pack
from clearhead.positions import ALiBi

TINY = BertConfig(vocab_size=97, d_model=48, n_heads=4, n_layers=3, d_ff=80, max_len=40, labels=("a", "b", "c"))
FAMILIES = {
    "bert": TINY,
    "roberta": replace(TINY, n_segments=1, first_position=2, pad_id=1, norm_eps=1e-5),
    "distilbert": replace(TINY, n_segments=0, pooler="relu"),
    "one head": replace(TINY, n_heads=1),
    "one layer": replace(TINY, n_layers=1),
    **{name: replace(TINY, activation=name) for name in ACTIVATIONS if name != "gelu"},
}
needs_bfloat16 = pytest.mark.skipif(
    onednn_obstacle(torch.bfloat16) is not None, reason=f"bfloat16: {onednn_obstacle(torch.bfloat16)}"
)


def classifier(config: BertConfig, dtype: torch.dtype = torch.float32) -> BertForSequenceClassification:
    """Return a random classifier whose attention is far from uniform, so that a wrong weight shows."""
    model = BertForSequenceClassification(config).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def ragged(config: BertConfig) -> list[list[int]]:
    """Return rows of one token, of the longest length, of equal and of different lengths, in no order."""
    lengths = [1, config.max_len, 7, 7, 7, 1, *(random.randint(2, config.max_len) for _ in range(20))]
    return [[random.randrange(config.vocab_size) for _ in range(length)] for length in lengths]


def one_by_one(call: nn.Module, rows: list[list[int]]) -> Tensor:
    """Return what the model says of every row alone: no padding, no mask, nothing to get wrong."""
    with torch.no_grad():
        return torch.cat([call(torch.tensor([row])) for row in rows])


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_packed_logits_equal_the_models(config: BertConfig, dtype: torch.dtype, bound: float) -> None:
    model, rows = classifier(config, dtype), ragged(config)
    logits = pack(model)(rows)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, one_by_one(model, rows), rtol=0, atol=bound)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_packed_embeddings_equal_the_models(config: BertConfig) -> None:
    trunk, rows = classifier(config).bert, ragged(config)
    vectors = pack(trunk)(rows)
    torch.testing.assert_close(
        vectors, torch.cat([trunk.embed(torch.tensor([row])) for row in rows]).detach(), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(rows)))


def test_layers_without_biases_are_packed_too() -> None:
    model = classifier(TINY, torch.float64)
    for block in model.bert.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.bias = None
    rows = ragged(TINY)
    torch.testing.assert_close(pack(model)(rows), one_by_one(model, rows), rtol=0, atol=1e-12)


def test_a_row_does_not_depend_on_its_company() -> None:
    run, rows = pack(classifier(TINY, torch.float64)), ragged(TINY)
    together = run(rows)
    for i in (0, 1, 2, 9):
        torch.testing.assert_close(run([rows[i]])[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 0.02, marks=needs_bfloat16)]
)
def test_real_weights_agree(minilm: Path, dtype: torch.dtype, bound: float) -> None:
    # 0.02 in a cosine's coordinates: bfloat16 has 8 bits, 2^-8 = 0.004 a product.
    trunk = load(minilm)
    model = BertForSequenceClassification(replace(trunk.config, labels=("no", "yes")), trunk).eval()
    rows = [[101, *(random.randrange(1_000, 30_000) for _ in range(n)), 102] for n in (1, 3, 3, 9, 30, 60, 510)]
    logits = one_by_one(model, rows)
    torch.testing.assert_close(pack(model, dtype)(rows), logits, rtol=0, atol=bound)
    torch.testing.assert_close(
        pack(trunk, dtype)(rows),
        torch.cat([trunk.embed(torch.tensor([row])) for row in rows]).detach(),
        rtol=0,
        atol=bound,
    )


@needs_bfloat16
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_bfloat16_stays_within_its_bits(config: BertConfig) -> None:
    model, rows = classifier(config), ragged(config)
    exact = one_by_one(model, rows)
    error = (pack(model, torch.bfloat16)(rows) - exact).abs().max() / exact.abs().max()
    assert 1e-6 < error < 0.03  # not float32 under another name, and not noise


@pytest.mark.skipif(onednn_obstacle(torch.float32) is not None, reason=f"oneDNN: {onednn_obstacle(torch.float32)}")
@pytest.mark.parametrize("then", [None, *ACTIVATIONS.values(), torch.tanh])
@pytest.mark.parametrize("adds", [False, True])
def test_both_kinds_of_linear_layer_agree(then: object, adds: bool) -> None:
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(5, 32)
    add = torch.randn(5, 48) if adds else None
    plain, fast = PlainLinear(weight, bias, then), OneDNNLinear(weight, bias, then)
    torch.testing.assert_close(fast(x, add), plain(x, add), rtol=1e-5, atol=1e-5)


def test_a_packed_encoder_can_be_copied_and_sent() -> None:
    model = classifier(TINY)
    run, rows = pack(model), ragged(TINY)
    logits = run(rows)  # which lays its weights out
    for twin in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert torch.equal(twin(rows), logits)


def test_what_runs_is_said() -> None:
    assert pack(classifier(TINY, torch.float64)).note == (
        "packed rows, plain weights, float64 (oneDNN packs float32 and bfloat16, not float64)"
    )


def changed(model: BertForSequenceClassification, change: str) -> nn.Module:
    """Return `model` with one thing that has no packed form."""
    block = model.bert.blocks[1]
    assert isinstance(block, Block)
    if change == "training":
        model.train()
    if change == "pre-norm":
        block.residual = pre_norm
    if change == "cross-attention":
        block.cross_attention = MultiHeadAttention(48, 4)
    if change == "ALiBi":
        block.attention.order = ALiBi(4)
    if change == "grouped heads":
        block.attention = MultiHeadAttention(48, 4, n_kv_heads=2)
    if change == "feed-forward":
        block.feed_forward = nn.Sequential(FeedForward(48, 80))
    if change == "half weights":
        model.to(torch.bfloat16)
    if change == "meta":
        model.to("meta")
    return BertForMaskedLM(TINY).eval() if change == "BertForMaskedLM" else model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("training", "model.eval()"),
        ("pre-norm", "residual is pre_norm"),
        ("cross-attention", "cross-attention"),
        ("ALiBi", "by ALiBi"),
        ("grouped heads", "4 query heads share 2"),
        ("feed-forward", "feed-forward is a Sequential"),
        ("half weights", "dtype=torch.float32"),
        ("meta", "it is on meta"),
        ("BertForMaskedLM", "a BertForMaskedLM"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="cannot pack") as error:
        pack(changed(classifier(TINY), change))
    assert reason in str(error.value)


def test_a_dtype_that_gains_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"its weights are torch.float32; load it with dtype=torch.float64"):
        pack(classifier(TINY), torch.float64)
    with pytest.raises(ConfigError, match=r"float16"):
        pack(classifier(TINY), torch.float16)


def test_rows_that_cannot_be_read_are_refused() -> None:
    run = pack(classifier(TINY))
    for rows in ([], [[]], [[1, 2], []]):
        with pytest.raises(ShapeError, match="at least one token"):
            run(rows)
    with pytest.raises(ShapeError, match="41 tokens"):
        run([[1] * 41])


def test_logits_carry_no_gradient() -> None:
    logits = pack(classifier(TINY))([[1, 2, 3]])
    assert not logits.requires_grad and logits.grad_fn is None
