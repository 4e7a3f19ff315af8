"""A layer is patched with what the layer of its name gave in one other run."""

import pytest
import torch
import transformers

from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import edit, watch


def test_a_layer_gets_its_own_output_whatever_its_number_was() -> None:
    sizes = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = transformers.BartConfig(vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, **sizes)
    model = transformers.BartForConditionalGeneration(config).eval()
    source, target = torch.randint(3, 50, (2, 1, 6))
    with torch.no_grad():
        with watch(model, outputs=True) as seen:
            plain = model(input_ids=source, decoder_input_ids=target).logits
        states = model.model.encoder(source)
        with edit(model) as change:  # without the encoder, layers count from the decoder's first
            change.patch("model.decoder.layers.0.self_attn", None, seen)
            assert torch.equal(model(encoder_outputs=states, decoder_input_ids=target).logits, plain)
        other = torch.randint(3, 50, (1, 6))
        with edit(model) as change, watch(model, outputs=True) as inside:
            change.patch(0, None, seen)
            model(encoder_outputs=states, decoder_input_ids=other)
    for head in range(4):
        assert torch.equal(inside.output(0, head), seen.output("model.decoder.layers.0.self_attn", head))


def test_a_layer_that_the_recording_does_not_have_is_refused() -> None:
    tokens, config = torch.arange(5)[None], BertConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, d_ff=32)
    bert = Bert(config).eval()
    with torch.no_grad():
        with watch(outer := torch.nn.Sequential(bert), outputs=True) as seen:
            outer(tokens)
        message = r"'blocks.1.attention' is not in that recording, which has '0.blocks.0.attention'"
        with pytest.raises(WatchError, match=message), edit(bert) as change:
            change.patch(1, 0, seen)
            bert(tokens)
        with edit(bert) as change, watch(bert, outputs=True) as inside:
            change.patch(1, 0, seen.output(1, 0))
            bert(tokens)
    assert torch.equal(inside.output(1, 0), seen.output(1, 0))


def test_a_recording_of_several_runs_is_not_patched_by_guessing_one() -> None:
    model = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=64)).eval()
    tokens = torch.randint(0, 50, (2, 1, 6))
    with torch.no_grad():
        with watch(model, outputs=True) as seen:
            model(tokens[0])
            model(tokens[1])
        with pytest.raises(WatchError, match=r"holds 2 runs of layer 1 .*call=\.\.\."), edit(model) as change:
            change.patch(1, 0, seen)
            model(tokens[0])
