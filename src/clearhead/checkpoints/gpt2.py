"""GPT-2 checkpoints (`model_type: gpt2`; Radford et al. 2019), as transformers and OpenAI's conversions publish them.

Linear layers are stored transposed, queries, keys and values as one. The published gpt2 leaves `transformer.` out.
"""

from collections.abc import Collection
from typing import Any

import torch

from clearhead.checkpoints.decoders import spelled_out
from clearhead.checkpoints.family import ACTIVATIONS, Family, Field, Json, read_fields, write_fields
from clearhead.checkpoints.mapping import TRANSPOSED, Alias, Ignored, Op, Rule, Table, stacked
from clearhead.errors import CheckpointError
from clearhead.models.gpt import GPT, GPTConfig, GPTForCausalLM

QKV = ("q_proj", "k_proj", "v_proj")
SIDE_BY_SIDE = Op(lambda theirs: theirs.T.chunk(3), lambda ours: torch.cat(ours).T)

TRUNK = Table(
    rules=(
        Rule("wte.weight", "words.weight"),
        Rule("wpe.weight", "positions.weight"),
        Rule("h.{i}.ln_1.{p}", "blocks.{i}.attention_norm.{p}"),
        Rule("h.{i}.attn.c_attn.weight", tuple(f"blocks.{{i}}.attention.{name}.weight" for name in QKV), SIDE_BY_SIDE),
        Rule("h.{i}.attn.c_attn.bias", tuple(f"blocks.{{i}}.attention.{name}.bias" for name in QKV), stacked(3)),
        Rule("h.{i}.attn.c_proj.weight", "blocks.{i}.attention.out_proj.weight", TRANSPOSED),
        Rule("h.{i}.attn.c_proj.bias", "blocks.{i}.attention.out_proj.bias"),
        Rule("h.{i}.ln_2.{p}", "blocks.{i}.feed_forward_norm.{p}"),
        Rule("h.{i}.mlp.c_fc.weight", "blocks.{i}.feed_forward.up_proj.weight", TRANSPOSED),
        Rule("h.{i}.mlp.c_fc.bias", "blocks.{i}.feed_forward.up_proj.bias"),
        Rule("h.{i}.mlp.c_proj.weight", "blocks.{i}.feed_forward.down_proj.weight", TRANSPOSED),
        Rule("h.{i}.mlp.c_proj.bias", "blocks.{i}.feed_forward.down_proj.bias"),
        Rule("ln_f.{p}", "norm.{p}"),
    ),
    ignored=(
        Ignored("h.{i}.attn.bias", "who may look at whom, as a triangle of ones"),
        Ignored("h.{i}.attn.masked_bias", "what takes the place of a forbidden score"),
    ),
)
WITHOUT_PREFIX = Table(
    aliases=tuple(Alias(rule.theirs, f"transformer.{rule.theirs}") for rule in TRUNK.rules), ignored=TRUNK.ignored
)
HEAD = Table(
    rules=(Rule("lm_head.weight", "head.weight"),), aliases=(Alias("lm_head.weight", "transformer.wte.weight"),)
)

FIELDS = (
    Field("vocab_size", "vocab_size", 50_257),
    Field("n_embd", "d_model", 768),
    Field("n_head", "n_heads", 12),
    Field("n_layer", "n_layers", 12),
    Field("n_positions", "max_len", 1_024),
    Field("activation_function", "activation", "gelu_tanh", {"gelu_new": "gelu_tanh", **ACTIVATIONS}),
    Field("layer_norm_epsilon", "norm_eps", 1e-5),
    Field("resid_pdrop", "dropout", 0.1),
    Field("attn_pdrop", "attention_dropout", 0.1),
    Field("tie_word_embeddings", "tied", True),
)
OTHERS = (
    Field("n_inner", "d_ff", None, optional=int),
    Field("embd_pdrop", "embedding_dropout", 0.1),
    Field("scale_attn_weights", "scaled", True),
)
SETTLED = {"scale_attn_by_inverse_layer_idx": (False,)}
HARMLESS = frozenset(
    """
    n_ctx n_special pad_token_id predict_special_tokens reorder_and_upcast_attn summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    """.split()
)


def read_config(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published GPT-2."""
    values = read_fields(config, FIELDS + OTHERS, settled=SETTLED, harmless=HARMLESS)
    if (embedding := values.pop("embedding_dropout")) != values["dropout"]:
        raise CheckpointError(
            f"embd_pdrop {embedding} is not resid_pdrop {values['dropout']}: here they are one number"
        )
    values["scale"] = None if values.pop("scaled") else 1.0
    values["d_ff"] = 4 * values["d_model"] if values["d_ff"] is None else values["d_ff"]
    return GPTConfig(**values)


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in GPT-2's words."""
    others = {"n_inner": config.d_ff, "embd_pdrop": config.dropout, "scale_attn_weights": config.scale != 1.0}
    return {**write_fields(config, FIELDS), **others}


GPT2 = Family(
    model_type="gpt2",
    prefix="transformer.",
    architectures={"GPT2Model": GPT, "GPT2LMHeadModel": GPTForCausalLM},
    tables={GPT: TRUNK, GPTForCausalLM: TRUNK.under("transformer.", "gpt.") + WITHOUT_PREFIX + HEAD},
    read_config=read_config,
    write_config=write_config,
    plain=spelled_out,
)
