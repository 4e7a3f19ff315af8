"""Small random models of every kind that writes, whose every parameter matters."""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM, RotaryConfig

Model = TypeVar("Model", bound=nn.Module)
VOCAB = 29
TINY = GPTConfig(vocab_size=VOCAB, d_model=16, n_heads=4, n_layers=3, d_ff=24, max_len=48)
LLAMA = replace(TINY, rotary=RotaryConfig(), norm="rms", feed_forward="gated", activation="silu", biases="none")
DECODERS = {
    "gpt2": TINY,
    "grouped queries, rotary, windows": replace(LLAMA, n_kv_heads=2, windows=(3, None), tied=False),
    "norms around, softcaps": replace(
        LLAMA, norm="rms_from_one", norms="around", windows=(2, None), score_softcap=1.5, logit_softcap=9.0
    ),
    "normed queries": replace(LLAMA, normed_queries=True, n_kv_heads=1, biases="attention"),
}
PAIR = EncoderDecoderConfig(
    vocab_size=VOCAB, d_model=16, n_heads=4, n_encoder_layers=2, n_decoder_layers=3, d_ff=24, embedding_scale=4.0
)
ENCODER_DECODERS = {
    "sinusoidal": PAIR,
    "learned": replace(PAIR, positions="learned", max_source_len=40, max_target_len=40, embedding_norm=True),
    "relative": replace(
        PAIR, positions="relative", norm="rms", norms="before", biases="none", feed_forward="gated", scale=0.5, d_head=6
    ),
    "sound": replace(PAIR, n_mels=5, norms="before", positions="learned", max_source_len=40, max_target_len=40),
}


def decoder(config: GPTConfig = TINY, seed: int = 2, std: float = 0.4) -> GPTForCausalLM:
    """Return a decoder, the same for the same seed."""
    return shaken(GPTForCausalLM(config), seed, std)


def encoder_decoder(config: EncoderDecoderConfig = PAIR, seed: int = 2) -> EncoderDecoder:
    """Return an encoder-decoder, the same for the same seed."""
    return shaken(EncoderDecoder(config), seed, 0.4)


def shaken(model: Model, seed: int, std: float) -> Model:
    """Make every parameter random: fresh norms and biases would hide mistakes, large biases repeat one word."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = std * noise if parameter.ndim > 1 else parameter.data + std / 2 * noise
    return model.eval()


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Return random texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]
