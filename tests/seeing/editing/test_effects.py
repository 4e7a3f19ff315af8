"""An effect is what an edit does, for every head, layer, link or token, however many are removed in one batch."""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import edit, effect, watch

BERT = BertConfig(
    vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=64, labels=("bad", "good", "unsure")
)


@pytest.fixture
def model() -> BertForSequenceClassification:
    return BertForSequenceClassification(BERT).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 50, (1, 7))


class Windows(nn.Module):
    """Attends within windows of four positions, which it folds into its batch, as models of pictures do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).reshape(-1, 4, 2, 8).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x).transpose(1, 2).reshape(len(tokens), -1, 16)
        return self.out(x.mean(1))


class Mixes(nn.Module):
    """Gives a text an answer that depends on the other texts in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = BertForSequenceClassification(BERT)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.inner(tokens)
        return logits + torch.arange(len(logits)).sum()


# ---------------------------------------------------------------- the numbers


def test_the_effect_of_a_head_is_what_switching_it_off_does(model: nn.Module, tokens: Tensor) -> None:
    found = effect(model, tokens, target="good")
    with torch.no_grad():
        assert found.before == pytest.approx(float(model(tokens)[0, 1]))
        for row in (found[0], found[-1]):
            with edit(model) as change:
                change.switch_off(row.layer, row.head)
                assert row.after == pytest.approx(float(model(tokens)[0, 1]), abs=1e-5)
    assert sorted((row.layer, row.head) for row in found) == [(i, h) for i in range(3) for h in range(4)]
    assert [abs(row.effect) for row in found] == sorted((abs(row.effect) for row in found), reverse=True)


@pytest.mark.parametrize(
    "where", [{}, {"over": "layers"}, {"over": "tokens"}, {"over": "links", "layer": 1, "head": 2, "query": 3}]
)
@pytest.mark.parametrize("at_once", [8, 64])
def test_many_removals_in_a_batch_are_each_alone(model: nn.Module, where: dict[str, Any], at_once: int) -> None:
    inputs = [torch.randint(0, 50, (2, 7)), torch.tensor([7, 4])]
    together, alone = (effect(model, inputs, 0, **where, at_once=n) for n in (at_once, 1))
    assert not together.notes and len(together) == len(alone)
    found = {(r.layer, r.head, r.query, r.key): r.after for r in alone}
    for row in together:
        assert row.after == pytest.approx(found[row.layer, row.head, row.query, row.key], abs=1e-5)


def test_the_head_that_decides_comes_first(model: BertForSequenceClassification, tokens: Tensor) -> None:
    for i, block in enumerate(model.bert.blocks):
        block.attention.out_proj.weight.data[:, :] *= 0.01
        if i == 1:
            block.attention.out_proj.weight.data[:, 16:24] *= 3000
    found = effect(model, tokens)
    assert (found[0].layer, found[0].head) == (1, 2)
    assert abs(found[0].effect) > 10 * abs(found[1].effect)


def test_links_carry_their_weight_and_only_those_with_any_are_tried() -> None:
    model = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=64)).eval()
    tokens = torch.randint(0, 50, (1, 6))
    with watch(model) as seen, torch.no_grad():
        model(tokens)
    found = effect(model, tokens, target=7, over="links", layer=1, head=3, query=-2)
    assert sorted((row.query, row.key) for row in found) == [(4, key) for key in range(5)]
    for row in found:
        assert row.weight == pytest.approx(float(seen.map(1, 3)[4, row.key]), abs=1e-6)
        assert row.effect == pytest.approx(0, abs=1e-5)  # nothing after the last layer looks at this position
    assert len(effect(model, tokens, over="links", layer=0, head=1)) == 6 * 7 // 2


def test_links_of_all_heads_are_ranked_together_unless_they_are_too_many(
    model: nn.Module, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = effect(model, tokens, 0, over="links", query=0)
    assert len(found) == 3 * 4 * 7 and {(row.layer, row.head) for row in found} == {
        (i, h) for i in range(3) for h in range(4)
    }
    alone = {row.key: row.after for row in effect(model, tokens, 0, over="links", layer=1, head=2, query=0)}
    assert alone == pytest.approx({row.key: row.after for row in found if (row.layer, row.head) == (1, 2)}, abs=1e-5)
    assert len(effect(model, tokens, 0, over="links", layer=2, query=0)) == 4 * 7
    monkeypatch.setattr("clearhead.seeing.editing.cases.MAX_LINKS", 83)
    with pytest.raises(InputError, match="more than 83 links"):
        effect(model, tokens, 0, over="links", query=0)


def test_a_model_is_what_it_was_when_ctrl_c_ends_it(model: nn.Module, tokens: Tensor) -> None:
    class Pressed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.runs, self.last = model, 0, 4

        def forward(self, tokens: Tensor) -> Tensor:
            self.runs += 1
            logits = self.inner(tokens)
            if self.runs == self.last:
                raise KeyboardInterrupt
            return logits

    pressed = Pressed().eval()
    with torch.no_grad():
        plain = model(tokens)
        with pytest.raises(KeyboardInterrupt):
            effect(pressed, tokens, 0, over="links", layer=0, head=1, at_once=8)
        assert torch.equal(model(tokens), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pressed.modules())
    assert torch._C._len_torch_function_stack() == 0


def test_a_token_is_hidden_from_all_others_and_may_see_itself(model: nn.Module, tokens: Tensor) -> None:
    found = {row.key: row.after for row in effect(model, tokens, 0, over="tokens")}
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, [0, 1, 2, 4, 5, 6], 3)
        assert found[3] == pytest.approx(float(model(tokens)[0, 0]), abs=1e-5)


# ---------------------------------------------------------------- models that cannot be batched


@pytest.mark.parametrize(
    "build, why", [(Windows, "holds something else than the texts"), (Mixes, "depends on the others in its batch")]
)
def test_where_a_batch_would_mix_things_are_removed_one_at_a_time(build: Callable[[], nn.Module], why: str) -> None:
    model, tokens = build().eval(), torch.randint(0, 50, (1, 8))
    found = effect(model, tokens, 0)
    assert any(why in note for note in found.notes)
    with edit(model) as change, torch.no_grad():
        change.switch_off(found[0].layer, found[0].head)
        assert found[0].after == pytest.approx(float(model(tokens)[0, 0]), abs=1e-5)


# ---------------------------------------------------------------- targets


def test_the_likeliest_class_is_the_default_and_has_its_name(model: nn.Module, tokens: Tensor) -> None:
    with torch.no_grad():
        best = int(model(tokens)[0].argmax())
    found = effect(model, tokens)
    assert found.target == f"logit of {BERT.labels[best]!r}"
    assert found.rows == effect(model, tokens, best).rows


def test_a_name_of_two_classes_is_refused_with_their_numbers(
    model: BertForSequenceClassification, tokens: Tensor
) -> None:
    model.config = replace(model.config, labels=("good", "bad", "good"))
    with pytest.raises(InputError, match="'good' is the name of classes 0 and 2: give the number of one"):
        effect(model, tokens, target="good")


def test_a_function_of_the_output_is_a_target(model: nn.Module, tokens: Tensor) -> None:
    with torch.no_grad():
        probability = float(model(tokens).softmax(-1)[0, 1])
    assert effect(model, tokens, lambda logits: logits.softmax(-1)[:, 1]).before == pytest.approx(probability)


def test_the_next_token_is_predicted_behind_the_last_that_is_no_padding() -> None:
    class Theirs(nn.Module):
        """Takes and gives what transformers' models do."""

        def __init__(self) -> None:
            super().__init__()
            self.gpt = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=64))

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.gpt(input_ids))

    model, tokens = Theirs().eval(), torch.randint(0, 50, (1, 6))
    padded = torch.cat([tokens, torch.zeros(1, 3, dtype=torch.long)], 1)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    short = effect(model, {"input_ids": tokens, "attention_mask": mask[:, :6]}, over="layers")
    long = effect(model, {"input_ids": padded, "attention_mask": mask}, over="layers")
    assert short.target == long.target
    assert [row.effect for row in short] == pytest.approx([row.effect for row in long], abs=1e-5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"target": "god"}, "target='god' is no class of this model; did you mean 'good'"),
        ({"target": 3}, "the model gives 3 logits, counted from 0"),
        ({"target": lambda logits: logits}, r"one number a text, 1 here, .*: it gave a tensor \(1, 3\)"),
        ({"over": "links", "query": 7}, "there is no query 7: the layers have up to 7"),
        ({"layer": 3}, "there is no layer 3: 0 to 2 ran"),
        ({"inputs": {"tokens": [1]}}, "inputs hold no tensor"),
    ],
)
def test_what_cannot_be_understood_is_refused(
    model: nn.Module, tokens: Tensor, wrong: dict[str, Any], message: str
) -> None:
    inputs = wrong.pop("inputs", tokens)
    with pytest.raises(InputError, match=message):
        effect(model, inputs, **wrong)


def test_outputs_without_logits_need_a_function() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with pytest.raises(InputError, match="expected logits"):
        effect(nn.Sequential(model, nn.Unflatten(2, (4, 4))).eval(), torch.randn(1, 5, 16))


def test_a_model_in_training_or_without_attention_is_refused(model: nn.Module, tokens: Tensor) -> None:
    with pytest.raises(WatchError, match="random in training"):
        effect(model.train(), tokens)
    with pytest.raises(WatchError, match="no attention was seen"):
        effect(nn.Linear(3, 3).eval(), torch.randn(1, 3))


# ---------------------------------------------------------------- the table


def test_a_table_prints_its_first_rows_and_turns_into_json(model: nn.Module, tokens: Tensor) -> None:
    found = effect(model, tokens, target=2)
    lines = repr(found).splitlines()
    assert lines[0] == f"logit of 'unsure': {found.before:.4f}; without one of 12 heads:"
    assert lines[2].split()[:2] == [str(found[0].layer), str(found[0].head)]
    assert lines[-1].startswith("... and 2 more, none above")
    read = json.loads(json.dumps(found.to_json()))
    assert read["rows"][0] == {
        "layer": found[0].layer,
        "head": found[0].head,
        "before": found[0].before,
        "after": found[0].after,
        "effect": found[0].effect,
    }
    assert (read["over"], len(read["rows"]), read["notes"]) == ("heads", 12, [])


def test_a_small_target_is_judged_by_its_own_size() -> None:
    class Small(Mixes):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * 1e-6

    with torch.no_grad():
        found = effect(Small().eval(), torch.randint(0, 50, (1, 6)), lambda out: out.sum(1))
    assert any("one at a time" in note for note in found.notes)


def test_what_does_not_apply_or_does_not_exist_is_refused() -> None:
    model = BertForSequenceClassification(BERT).eval()
    tokens = torch.arange(5)

    def total(out: torch.Tensor) -> torch.Tensor:
        return out.flatten(1).sum(1)

    with pytest.raises(InputError, match="there is no head 9"):
        effect(model, tokens[None], total, "heads", head=9)
    with pytest.raises(InputError, match="does not take head="):
        effect(model, tokens[None], total, "tokens", head=0)
    pair = EncoderDecoder(
        EncoderDecoderConfig(vocab_size=50, d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, d_ff=32)
    ).eval()
    with pytest.raises(InputError, match=r"looks at several: 5 keys of layers .*decoder"):
        effect(pair, [tokens[None], tokens[None]], total, "tokens")
