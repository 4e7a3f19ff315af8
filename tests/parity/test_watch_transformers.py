"""Every layer of transformers' architectures is seen, unchanged, and shows the weights that their slow path returns.

One test an architecture, at two layers and a width of 32, random weights: two texts, one of them padded. Each model
runs blind and watched with the kernel it chooses; then, where it has a slow path that returns weights, watched on that.
"""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from clearhead.errors import WatchError
from clearhead.seeing import Recording, watch

TOLERANCE = 1e-5

# What a small configuration is called, in all the ways it is called.
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ["hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "dim", "word_embed_proj_dim"], 32
    ),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_decoder_layers", "num_encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"], 4),
    **dict.fromkeys(
        ["intermediate_size", "d_ff", "d_inner", "ffn_dim", "n_inner", "encoder_ffn_dim", "hidden_dim"], 48
    ),
    **dict.fromkeys(["decoder_ffn_dim", "feed_forward_size", "ffn_hidden_size"], 48),
    **dict.fromkeys(["head_dim", "d_kv", "d_head", "attention_head_size", "kv_channels", "v_head_dim"], 8),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "rotary_dim"], 4),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "entity_emb_size"], 16),
    **dict.fromkeys(["num_key_value_heads", "num_experts_per_tok"], 2),
    **{"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    **{"sliding_window": 4, "attention_window": 4, "entity_vocab_size": 20, "encoder_layerdrop": 0.0},
}

TEXT = """
albert arcee bart bert big_bird biogpt blenderbot blenderbot-small bloom camembert codegen cohere cohere2 ctrl
data2vec-text deberta deberta-v2 diffllama distilbert electra ernie ernie4_5 exaone4 falcon flaubert fsmt gemma
gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe
helium ibert jetmoe lfm2 llama luke m2m_100 marian markuplm mbart megatron-bert mistral mixtral mobilebert modernbert
modernbert-decoder mpnet mpt mt5 mvp nllb-moe olmo olmo2 olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe
plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_moe rembert roberta roberta-prelayernorm roc_bert roformer smollm3
squeezebert stablelm starcoder2 switch_transformers t5 umt5 xglm xlm xlm-roberta xlm-roberta-xl xlnet
""".split()

# What a kind needs besides.
ALSO: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},  # what it falls back to here, without giving its weights
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    "reformer": {
        **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [3, 3], "attn_layers": ["local", "lsh"]},
    },
    "deberta": {"relative_attention": True, "max_relative_positions": 8, "pos_att_type": ["p2c", "c2p"]},
}
NOT: dict[str, set[str]] = {  # settings that a kind derives from others, or refuses
    "falcon": {"head_dim"},
    "prophetnet": {"num_hidden_layers"},
    "xlnet": {"max_position_embeddings"},
}

# Their slow path returns something else than the weights of each call. How many calls are seen instead.
OTHER_WEIGHTS: dict[str, int] = {
    "diffllama": 4,  # one map a layer, of two calls whose outputs are subtracted
    "prophetnet": 8,  # the scores of its main stream, before the softmax
    "squeezebert": 2,  # the same
    "wavlm": 2,  # the mean over heads
    **dict.fromkeys(["swin", "swinv2", "donut-swin"], 4),  # one map a stage
    **{"levit": 5, "mobilevit": 9},  # nothing
}

PICTURE = {"image_size": 32, "patch_size": 8}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 4, 4]}
SOUND = {
    **{"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 4], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
}
PICTURES_AND_SOUND: dict[str, dict[str, Any]] = {
    **dict.fromkeys("vit deit beit dinov2 dinov2_with_registers dinov3_vit vit_msn ijepa pixtral".split(), PICTURE),
    **dict.fromkeys("clip_vision_model siglip_vision_model data2vec-vision dpt".split(), PICTURE),
    **dict.fromkeys("swin swinv2 donut-swin".split(), WINDOWS),
    "segformer": {**STAGES, "sr_ratios": [4, 2, 1, 1]},
    "pvt": {**STAGES, "image_size": 64},
    "glpn": STAGES,
    "levit": {
        **{"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1]},
        "key_dim": [8, 8, 8],
    },
    "mobilevit": {
        **{"hidden_sizes": [32, 32, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "image_size": 32},
        "num_attention_heads": 2,
    },
    "mgp-str": {"image_size": [16, 16]},
    **dict.fromkeys("wav2vec2 hubert wavlm unispeech sew data2vec-audio wav2vec2-conformer".split(), SOUND),
    "data2vec-audio": {**SOUND, "num_conv_pos_embeddings": 2},
    "whisper": {"max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8},
    "speech_to_text": {
        **{"max_source_positions": 40, "max_target_positions": 20, "input_feat_per_channel": 8, "conv_channels": 16},
        **{"input_channels": 1, "num_conv_layers": 1, "conv_kernel_sizes": [5]},
    },
}
# Attention that is not among the weights of the slow path: a pooling head.
BESIDES = {"siglip_vision_model": ["head.attention"]}

# Modules that look like attention, ran, and are listed as unseen, each with the reason; and how many layers were seen.
NONE = "it ran, but made no attention that can be seen: none with a softmax over keys, or by a kernel unknown here"
UNSEEN: dict[str, tuple[int, list[str]]] = {
    "longformer": (0, ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]),  # bands, cut and skewed
    "led": (4, [f"encoder.layers.{i}.self_attn.longformer_self_attn" for i in range(2)]),  # its decoder is seen
    "reformer": (0, [f"encoder.layers.{i}.attention.self_attention" for i in range(2)]),  # chunks, buckets
    "mra": (0, ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]),  # sparse blocks, no softmax
    "yoso": (0, ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]),  # hashing
    "rwkv": (0, ["blocks.0.attention", "blocks.1.attention"]),  # a recurrence
    "minimax": (1, ["layers.1.self_attn"]),  # every other layer is linear attention
    "fnet": (0, []),  # a Fourier transform
    "mamba": (0, []),  # a state-space model
}
HAND = "attention by hand that cannot be told exactly: "
OTHER = HAND + "its softmax was over something else than a product of queries and keys that could be followed"
SAID = {
    "reformer": HAND + "the exponentials of its scores were changed before their sum was taken",
    **dict.fromkeys(["longformer", "led"], OTHER),
}
# Modules that weigh neighbours by a softmax over what a linear layer gave, beside the attention that is seen.
CONVOLUTIONS = {"convbert": [(f"encoder.layer.{i}.attention.self", OTHER) for i in range(2)]}
# Modules that weigh tokens by a softmax over what a convolution gave, beside the attention that is seen.
POOLS = {"mgp-str": ["char_a3_module", "bpe_a3_module", "wp_a3_module"]}


def small(kind: str, **settings: Any) -> Any:
    """Return a small random model of a kind."""
    config_class = CONFIG_MAPPING[kind]
    known = config_class()
    names = {
        name: value
        for name, value in SMALL.items()
        if name not in NOT.get(kind, ()) and isinstance(getattr(known, name, None), (int, float))
    }
    config = config_class(**{**names, **ALSO.get(kind, {}), **settings})
    return transformers.AutoModel.from_config(config).eval()


def texts(model: Any) -> dict[str, Tensor]:
    """Return two texts, the second of them padded."""
    given = {"input_ids": torch.randint(3, 60, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    given["attention_mask"][1, 6:] = 0
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.randint(3, 60, (2, 5))
    return given


def pictures_or_sound(model: Any) -> dict[str, Tensor]:
    """Return two of what a model looks at or listens to."""
    config, name = model.config, model.main_input_name
    if name == "pixel_values":
        size = getattr(config, "image_size", 32)
        return {name: torch.randn(2, config.num_channels, *(size if isinstance(size, list) else [size, size]))}
    if name == "input_values":
        return {name: torch.randn(2, 400)}
    features = torch.randn(2, 8, 40) if config.model_type == "whisper" else torch.randn(2, 40, 8)
    return {name: features, "decoder_input_ids": torch.randint(3, 60, (2, 5))}


def numbers(output: Any) -> list[Tensor]:
    """Return the tensors of an output, nested as they may be."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if hasattr(output, "values") else output
    return [x for item in items if isinstance(item, (Tensor, tuple, list)) for x in numbers(item)]


def weights_of(output: Any) -> list[Tensor]:
    """Return the weights that a model returned, in the order its layers ran."""
    attentions = getattr(output, "attentions", None)
    if attentions is not None:
        return list(attentions)
    encoder, decoder, cross = (
        getattr(output, name, None) or () for name in ("encoder_attentions", "decoder_attentions", "cross_attentions")
    )
    return [*encoder, *(weights for layer in zip(decoder, cross) for weights in layer)]


def shown(seen: Recording, layer: int, batch: int) -> Tensor:
    """Return the map of every head of a layer."""
    return torch.stack([seen.map(layer, head, batch=batch) for head in seen.call(layer).heads])


def assert_same_weights(seen: Recording, expected: list[Tensor], kept: Tensor, besides: Sequence[str] = ()) -> None:
    """Compare every map with what the slow path returned; rows of padding mean nothing, and paths differ there."""
    layers = [layer.index for layer in seen.layers if layer.name not in besides]
    assert len(layers) == len(expected) > 0
    for layer, weights in zip(layers, expected):
        for batch in range(len(weights)):
            have, want = shown(seen, layer, batch), weights[batch]
            rows = kept[batch] if want.shape[-2] == kept.shape[-1] else slice(None)
            torch.testing.assert_close(have[:, rows], want[:, rows].to(have.dtype), rtol=0, atol=TOLERANCE)


def see_both_ways(model: Any, given: dict[str, Tensor]) -> tuple[Recording, Recording, list[Tensor]]:
    """Watch a model run, and its copy that runs the slow path; return both, and the weights that the copy returned.

    The first must compute what it computes blind.
    """
    with torch.no_grad():
        blind = model(**given)
        with watch(model) as seen:
            watched = model(**given)
    assert all(torch.equal(a, b) for a, b in zip(numbers(blind), numbers(watched), strict=True))
    eager = transformers.AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad(), watch(eager) as slow:
        weights = weights_of(eager(**given, output_attentions=True))
    return seen, slow, weights


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("kind", TEXT)
def test_every_layer_of_a_text_model_is_seen_unchanged(kind: str) -> None:
    model = small(kind)
    given = texts(model)
    seen, slow, weights = see_both_ways(model, given)
    for run in (seen, slow):
        assert [(one.name, one.reason) for one in run.unseen] == CONVOLUTIONS.get(kind, [])
    assert seen.notes == []
    if kind in OTHER_WEIGHTS:
        assert len(seen.layers) == OTHER_WEIGHTS[kind]
        return
    kept = given["attention_mask"].bool()
    assert_same_weights(seen, weights, kept)
    assert_same_weights(slow, weights, kept)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("kind", PICTURES_AND_SOUND)
def test_every_layer_of_a_model_of_pictures_or_sound_is_seen_unchanged(kind: str) -> None:
    model = small(kind, **PICTURES_AND_SOUND[kind])
    seen, slow, weights = see_both_ways(model, pictures_or_sound(model))
    assert [one.name for one in seen.unseen] == [one.name for one in slow.unseen] == POOLS.get(kind, [])
    assert seen.notes == []
    besides = [layer.name for layer in seen.layers if layer.name in BESIDES.get(kind, ())]
    assert besides == BESIDES.get(kind, [])
    if kind in OTHER_WEIGHTS:
        assert len(seen.layers) == OTHER_WEIGHTS[kind]
        return
    nobody = torch.ones(0, 0, dtype=torch.bool)
    assert_same_weights(seen, weights, nobody, besides)
    assert_same_weights(slow, weights, nobody, besides)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("kind", UNSEEN)
def test_what_is_not_seen_is_named(kind: str) -> None:
    model = small(kind)
    given = texts(model)
    with torch.no_grad():
        blind = model(**given)
        with watch(model) as seen:
            watched = model(**given)
    assert all(torch.equal(a, b) for a, b in zip(numbers(blind), numbers(watched), strict=True))
    n_layers, names = UNSEEN[kind]
    assert [(unseen.name, unseen.reason) for unseen in seen.unseen] == [(name, SAID.get(kind, NONE)) for name in names]
    if n_layers:
        assert len(seen.layers) == n_layers
    else:
        with pytest.raises(WatchError, match="no attention"):
            seen.map(0, 0)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_generation_of_grouped_heads_after_padding_is_seen_as_one_forward_would_be(
    kind: str, implementation: str
) -> None:
    # transformers folds the heads of a group into positions when it decodes one token under a mask
    config = small(kind).config
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    prompt, mask = torch.randint(3, 60, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    with watch(model) as steps:
        whole = model.generate(
            prompt, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    with torch.no_grad(), watch(model) as once:
        model(whole[:, :-1], attention_mask=torch.nn.functional.pad(mask, (0, 4), value=1))
    assert [layer.calls for layer in steps.layers] == [5, 5]
    assert steps.unseen == ()
    for layer in range(2):
        assert (steps.layers[layer].n_heads, steps.layers[layer].n_kv_heads) == (4, 2)
        for batch in range(2):
            for step, (head, row) in enumerate(zip((0, 1, 2, 3), range(7, 11)), start=1):
                keys = steps.map(layer, head, batch=batch, call=step)
                expected = once.map(layer, head, rows=[row], batch=batch)[:, row + 1 - keys.shape[1] : row + 1]
                torch.testing.assert_close(keys, expected, rtol=0, atol=TOLERANCE)


def test_two_watchers_and_what_was_there_before_are_left_as_they_were() -> None:
    interface = transformers.modeling_utils.AttentionInterface
    before, known = interface.get_interface, dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)
    model = small("llama")
    given = texts(model)
    with torch.no_grad():
        blind = model(**given)[0]
        with watch(model) as outer, watch(model, layers=[1]) as inner:
            assert torch.equal(model(**given)[0], blind)
        with pytest.raises(RuntimeError, match="stop"), watch(model):
            raise RuntimeError("stop")
    assert [layer.calls for layer in outer.layers] == [1, 1]
    assert torch.equal(inner.map(1, 3), outer.map(1, 3))
    assert (outer.layers[1].n_kv_heads, inner.layers[0].n_kv_heads) == (2, 2)
    assert interface.get_interface is before
    assert dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS) == known


def test_an_attention_function_of_ones_own_is_seen_by_what_it_calls() -> None:
    def mine(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = (query @ key.mT * module.scaling).tril() + torch.full(query.shape[2:3] * 2, -torch.inf).triu(1)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("mine", mine)
    transformers.AttentionMaskInterface.register("mine", lambda *_, **__: None)
    try:
        model = small("llama")
        model.set_attn_implementation("mine")
        given = {"input_ids": torch.randint(3, 60, (1, 9))}
        with torch.no_grad(), watch(model) as seen:
            model(**given)
    finally:
        del transformers.AttentionInterface._global_mapping["mine"]
        del transformers.AttentionMaskInterface._global_mapping["mine"]
    # tril() is no step that scores can be followed through: its own weights are kept
    assert [(layer.name, layer.weights_kept) for layer in seen.layers] == [
        ("layers.0.self_attn", True),
        ("layers.1.self_attn", True),
    ]
    assert len(seen.notes) == 1 and seen.notes[0].endswith("its scores went through tril")
