"""Facts about models/encoder_decoder.py that need no other implementation; parity/ compares with transformers."""

from dataclasses import replace

import pytest
import torch

from clearhead.attention import attention_map
from clearhead.cache import FixedLayerCache, LayerCache
from clearhead.errors import ConfigError, ShapeError
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.seeing import watch

TINY = EncoderDecoderConfig(vocab_size=50, d_model=16, n_heads=4, n_encoder_layers=2, n_decoder_layers=3, d_ff=24)
LEARNED = replace(TINY, positions="learned", max_source_len=40, max_target_len=40)
TEXTS = {
    "2017": TINY,
    "bart": replace(LEARNED, first_position=2, embedding_norm=True, embedding_scale=1.0, logit_bias=True),
    "t5": replace(
        TINY, positions="relative", norm="rms", norms="before", biases="none", scale=1.0, n_buckets=8, max_distance=10
    ),
    "t5 1.1": replace(TINY, positions="relative", norm="rms", feed_forward="gated", d_head=6, tied=False),
}
SOUND = replace(LEARNED, n_mels=5, norms="before", biases="all_but_keys")
CONFIGS = {**TEXTS, "sound": SOUND}


def build(config: EncoderDecoderConfig) -> EncoderDecoder:
    """Return a model whose every parameter matters: fresh norms and biases would hide mistakes."""
    torch.manual_seed(1)
    model = EncoderDecoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def sources(config: EncoderDecoderConfig, *lengths: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return sources that begin together, and their lengths; sounds are all of one length."""
    if config.n_mels is not None:
        return torch.randn(len(lengths), config.n_mels, 2 * max(lengths)), None
    tokens = torch.randint(1, 50, (len(lengths), max(lengths)))
    given = torch.tensor(lengths)
    return tokens.masked_fill(torch.arange(max(lengths)) >= given[:, None], 0), given


def targets(texts: int, length: int) -> torch.Tensor:
    """Return the beginnings of as many answers."""
    return torch.randint(1, 50, (texts, length))


every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


# ---------------------------------------------------------------- who looks where


@every_kind
def test_the_decoder_does_not_look_ahead(config: EncoderDecoderConfig) -> None:
    model, (source, lengths), target = build(config), sources(config, 9), targets(1, 12)
    changed = target.clone()
    changed[0, 7] = 0
    before, after = model(source, target, lengths), model(source, changed, lengths)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=1e-6)
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


@every_kind
def test_every_target_token_depends_on_the_first_and_on_the_last_of_the_source(config: EncoderDecoderConfig) -> None:
    model, (source, _), target = build(config), sources(config, 9), targets(1, 6)
    before = model(source, target)
    for place in (0, -1):
        changed = source.clone()
        changed[..., place] = 1 if config.n_mels is None else 3.0
        assert not torch.isclose(before, model(changed, target)).all(-1).any()


@pytest.mark.parametrize("config", TEXTS.values(), ids=TEXTS)
def test_padding_of_the_source_changes_nothing(config: EncoderDecoderConfig) -> None:
    model, (source, lengths), target = build(config), sources(config, 11, 1, 6), targets(3, 8)
    together = model(source, target, lengths)
    other = source.masked_fill(source == 0, 7)
    torch.testing.assert_close(model(other, target, lengths), together, atol=1e-6, rtol=1e-6)
    for row, length in enumerate(lengths.tolist()):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [[6, 1, 1, 1, 5], [1, 1, 12], [14]], ids=str)
@pytest.mark.parametrize("kind", [LayerCache, FixedLayerCache])
@every_kind
def test_cached_decoding_equals_full_forward(
    config: EncoderDecoderConfig, kind: type[LayerCache], pieces: list[int]
) -> None:
    model, (source, lengths), target = build(config), sources(config, 9, 1, 4), targets(3, 14)
    with torch.inference_mode():
        memory, cache = model.encode(source, lengths), model.new_cache(3, 20, kind)
        came = [model.decode(piece, memory, lengths, cache=cache) for piece in target.split(pieces, dim=1)]
        expected = model(source, target, lengths)
    torch.testing.assert_close(model.logits(torch.cat(came, dim=1)), expected, atol=1e-5, rtol=1e-5)


def test_the_memory_is_projected_once_a_cache() -> None:
    model, (source, lengths), target = build(TINY), sources(TINY, 9), targets(1, 5)
    calls = []
    model.decoder.blocks[0].cross_attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    memory, cache = model.encode(source, lengths), model.new_cache(1, 5)
    for piece in target.split(1, dim=1):
        model.decode(piece, memory, lengths, cache=cache)
    assert len(calls) == 1


def test_watching_sees_who_looks_at_the_source() -> None:
    model, (source, _), target = build(TINY), sources(TINY, 9), targets(1, 6)
    attention, given = model.decoder.blocks[1].cross_attention, []
    attention.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    with torch.inference_mode(), watch(model) as seen:
        model(source, target)
        x, memory = given[0]
        expected = attention_map(attention.queries(x), attention.keys_and_values(memory)[0])
    layer = next(i for i, site in enumerate(seen.layers) if site.name == "decoder.blocks.1.cross_attention")
    torch.testing.assert_close(seen.map(layer, 2), expected[0, 2], atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- the parts


def test_sizes_are_those_of_the_paper() -> None:
    # Vaswani et al. 2017, table 3, says 65 and 213 million; with 37,000 shared words it is these.
    big = EncoderDecoderConfig(d_model=1_024, n_heads=16, d_ff=4_096)
    with torch.device("meta"):
        models = [EncoderDecoder(config) for config in (EncoderDecoderConfig(), big)]
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert [round(count / 1e6) for count in counts] == [63, 214]


def test_embeddings_are_scaled_by_the_square_root_of_their_size_unless_said_otherwise() -> None:
    model, tokens = build(TINY), targets(1, 3)
    given: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.encode(tokens)
    torch.testing.assert_close(given[0], 4.0 * model.words(tokens))


def test_words_are_guessed_by_the_word_embedding_itself_where_tied() -> None:
    tied, untied, hidden = build(replace(TINY, logit_scale=0.25)), build(TEXTS["t5 1.1"]), torch.randn(2, 16)
    torch.testing.assert_close(tied.logits(hidden), 0.25 * hidden @ tied.words.weight.T)
    torch.testing.assert_close(untied.logits(hidden), hidden @ untied.head.weight.T)


def test_the_bias_of_the_logits_is_added_to_every_position() -> None:
    model, hidden = build(CONFIGS["bart"]), torch.randn(2, 3, 16)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.words.weight.T + model.logit_bias)


def test_sound_is_heard_at_half_its_frames() -> None:
    model = build(SOUND)
    assert [model.encode(torch.randn(1, 5, frames)).shape[1] for frames in (2, 7, 80)] == [1, 4, 40]


def test_relative_positions_are_one_table_a_half() -> None:
    model = build(TEXTS["t5"])
    tables = [name for name, _ in model.named_parameters() if "order" in name]
    assert tables == ["encoder.order.weight", "decoder.order.weight"]


def test_biases_are_where_they_are_asked_for() -> None:
    names = {name for name, _ in EncoderDecoder(SOUND).named_parameters()}
    assert "decoder.blocks.0.cross_attention.q_proj.bias" in names
    assert not any(name.endswith("k_proj.bias") for name in names)
    assert not any("bias" in name for name, _ in EncoderDecoder(TEXTS["t5"]).named_parameters())


def test_dropout_of_the_weights_may_differ_from_that_of_the_rest() -> None:
    def rates(config: EncoderDecoderConfig) -> tuple[float, float]:
        block = EncoderDecoder(config).decoder.blocks[0]
        return block.dropout.p, block.cross_attention.dropout

    assert rates(replace(TINY, dropout=0.3)) == (0.3, 0.3)
    assert rates(replace(TINY, dropout=0.3, attention_dropout=0.0)) == (0.3, 0.0)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, said",
    [
        ({"n_decoder_layers": 0}, "expected positive numbers, got n_decoder_layers 0"),
        ({"d_head": 0, "max_target_len": -1}, "got d_head 0, max_target_len -1"),
        ({"n_mels": 0}, "got n_mels 0"),
        ({"embedding_scale": 0.0, "scale": -1.0}, "got scale -1.0, embedding_scale 0.0"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"attention_dropout": -0.1}, "attention_dropout must be in"),
        ({"n_buckets": 3}, "half of the buckets, at least 4"),
        ({"n_buckets": 32, "max_distance": 16}, "got 32 buckets for max_distance 16"),
        ({"activation": "rely"}, "unknown activation 'rely'; did you mean 'relu'"),
        ({"n_heads": 5}, "d_model 16 does not divide into 5 heads"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncoderDecoder(replace(TINY, **change))


def test_sound_and_tokens_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(ShapeError, match=r"reads a mel spectrogram, got torch\.int64 of shape"):
        build(SOUND).encode(targets(1, 3))
    with pytest.raises(ShapeError, match=r"reads token ids, got torch\.float32 of shape"):
        build(TINY).encode(torch.randn(1, 5, 8))


def test_texts_longer_than_their_learned_positions_are_refused() -> None:
    model = build(LEARNED)
    with pytest.raises(ShapeError, match="41 tokens, but this model has 40 learned positions"):
        model.encode(targets(1, 41))
    with pytest.raises(ShapeError, match="41 tokens, but this model has 40 learned positions"):
        model.new_cache(1, 41)
    assert build(TINY)(targets(1, 60), targets(1, 60)).shape == (1, 60, 50)
