"""Every layer of transformers' architectures is seen, unchanged, and shows the weights that their slow path returns.

One test an architecture, at two layers and a width of 32, random weights: two texts, one of them padded. Each model runs
blind and watched with the kernel it chooses; then, where it has a slow path that returns weights, watched on that.
"""

import copy
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
albert arcee bart bert big_bird biogpt blenderbot blenderbot-small bloom camembert codegen cohere cohere2 ctrl data2vec-text
deberta deberta-v2 diffllama distilbert electra ernie ernie4_5 exaone4 falcon flaubert fsmt gemma gemma2 gemma3_text glm
glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe helium ibert jetmoe lfm2 llama
luke m2m_100 marian markuplm mbart megatron-bert mistral mixtral modernbert modernbert-decoder mpnet mpt mt5 mvp nllb-moe
olmo olmo2 olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_moe
rembert roberta roberta-prelayernorm roc_bert roformer smollm3 stablelm starcoder2 switch_transformers t5 umt5 xglm xlm
xlm-roberta xlm-roberta-xl xlnet
""".split()

# What a kind needs besides.
ALSO: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
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
}

# Modules that look like attention and are listed as unseen, beside the attention that was seen.
UNSEEN: dict[str, list[str]] = {}


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
    return torch.stack([seen.map(layer, head, batch=batch) for head in range(seen.layers[layer].n_heads)])


def assert_same_weights(seen: Recording, expected: list[Tensor], kept: Tensor) -> None:
    """Compare every map with what the slow path returned; rows of padding mean nothing, and paths differ there."""
    assert len(seen.layers) == len(expected)
    for layer, weights in enumerate(expected):
        for batch in range(len(weights)):
            have, want = shown(seen, seen.layers[layer].index, batch), weights[batch]
            rows = kept[batch] if want.shape[-2] == kept.shape[1] else slice(None)
            torch.testing.assert_close(have[:, rows], want[:, rows].to(have.dtype), rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("kind", TEXT)
def test_every_layer_of_a_text_model_is_seen_unchanged(kind: str) -> None:
    model = small(kind)
    given = texts(model)
    with torch.no_grad():
        blind = model(**given)
        with watch(model) as seen:
            watched = model(**given)
    assert all(torch.equal(a, b) for a, b in zip(numbers(blind), numbers(watched), strict=True))
    assert [unseen.name for unseen in seen.unseen] == UNSEEN.get(kind, [])
    assert seen.notes == []
    if kind in OTHER_WEIGHTS:
        assert len(seen.layers) == OTHER_WEIGHTS[kind]
        return
    eager = transformers.AutoModel.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad(), watch(eager) as slow:
        weights = weights_of(eager(**given, output_attentions=True))
    kept = given["attention_mask"].bool()
    assert_same_weights(seen, weights, kept)
    assert_same_weights(slow, weights, kept)
