"""A target is a number of each text, read off the logits of whatever object a model gives."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clearhead.errors import InputError
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.seeing import effect

BERT = BertConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1, d_ff=32, labels=("bad", "good", "unsure"))
LLAMA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


class Wrapped(nn.Module):
    """Gives its logits in some other object."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap, self.config = BertForSequenceClassification(BERT), wrap, BERT

    def forward(self, tokens: Tensor) -> Any:
        return self.wrap(self.inner(tokens))


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits,),
    "behind a loss": lambda logits: [torch.tensor(0.5), logits, torch.zeros(2, 9)],
    "dict": lambda logits: {"hidden": torch.zeros(2, 9), "logits": logits},
    "dict of another name": lambda logits: {"loss": torch.tensor(0.5), "scores": logits},
    "object": lambda logits: SimpleNamespace(logits=logits),
    "ModelOutput": lambda logits: transformers.modeling_outputs.SequenceClassifierOutput(logits=logits),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_function_is_given_the_logits_whatever_holds_them(wrap: Callable[[Tensor], Any]) -> None:
    model, tokens = Wrapped(wrap).eval(), torch.randint(0, 50, (2, 5))
    found = effect(model, tokens, lambda logits: logits[:, 1])
    assert found.before == effect(model, tokens, 1).before == effect(model, tokens, "good").before


def test_a_function_is_given_the_output_where_that_has_no_logits() -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, hidden_size=16, **sizes)).eval()
    given = {"input_ids": torch.randint(0, 50, (2, 5))}
    with torch.no_grad():
        pooled = float(model(**given).pooler_output[:, 3].mean())
    assert effect(model, given, lambda output: output.pooler_output[:, 3]).before == pytest.approx(pooled)
    with pytest.raises(InputError, match=r"the model gives a BaseModelOutput.*: expected logits"):
        effect(model, given, 3)


@pytest.mark.parametrize(
    "target, message",
    [
        (lambda output: output.logits[:, 1], r"called with a tensor \(2, 3\) and raised AttributeError: .*'logits'"),
        (lambda logits: logits[0, 1], r"one number a text, 2 here, .*: it gave a tensor \(\)"),
        (lambda logits: logits[:1], r"one number a text, 2 here, .*: it gave a tensor \(1, 3\)"),
        (lambda logits: logits[:, 1] / 0, "the target is -?inf with nothing removed"),
    ],
    ids=["of the output", "of one text", "of all classes", "infinite"],
)
def test_what_is_no_target_is_refused_with_what_came_and_what_was_expected(target: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        effect(Wrapped(lambda logits: logits).eval(), torch.randint(0, 50, (2, 5)), target)


def test_a_decoder_has_no_names_for_its_tokens() -> None:
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, **LLAMA)
    model = transformers.LlamaForCausalLM(config).eval()  # whose config names LABEL_0 and LABEL_1
    with pytest.raises(
        InputError, match=r"the 50 logits of this model have no names: give the number .* 0 to 49, or a fun"
    ):
        effect(model, torch.randint(0, 50, (1, 5)), "x")


def test_the_mask_of_the_source_says_nothing_about_the_target() -> None:
    sizes = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = transformers.BartConfig(vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, **sizes)
    model = transformers.BartForConditionalGeneration(config).eval()
    source, target = torch.randint(3, 50, (2, 1, 6))
    given = {"input_ids": source, "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0]]), "decoder_input_ids": target}
    with torch.no_grad():
        last = float(model(**given).logits[0, -1, 7])
    assert effect(model, given, 7, "layers").before == pytest.approx(last)


def test_a_mask_over_cached_tokens_ends_where_the_new_ones_end() -> None:
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, **LLAMA)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens, mask = torch.randint(3, 50, (1, 8)), torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        past = model(tokens[:, :4], attention_mask=mask[:, :4]).past_key_values
        expected = float(model(tokens, attention_mask=mask).logits[0, 5, 7])
    given = {"input_ids": tokens[:, 4:], "attention_mask": mask, "past_key_values": past}
    assert effect(model, given, 7, "layers").before == pytest.approx(expected, abs=1e-5)


def test_logits_whose_first_axis_is_time_need_a_function() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(7, 2, 16)
    with pytest.raises(
        InputError, match=r"gives a tensor \(7, 2, 16\) for a batch of 2: texts are not along its first"
    ):
        effect(model, x, 3)
    with torch.no_grad():
        last = float(model(x)[-1, :, 3].mean())
    assert effect(model, x, lambda out: out[-1, :, 3]).before == pytest.approx(last)
