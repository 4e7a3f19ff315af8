"""What the configs of decoders since Llama have in common: how order enters, and which layers see only a window.

Rotary positions are published in two ways. Both are read; written is the older one, which every version of
transformers understands: an older one takes a config without `rope_theta` for one with the base 10,000.

    "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ...}          until transformers 4
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, ...}       since transformers 5

Next: `llama.py`, the family that most others follow.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.family import Field, Json, read_fields, read_nested, write_fields
from clearhead.errors import CheckpointError, nearest
from clearhead.models.gpt import GPTConfig, RotaryConfig
from clearhead.rotary import DynamicNTK, Linear, Llama3, Yarn

SETTLED: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_bidirectional_attention": (False,),
}
HARMLESS = frozenset(
    {"pad_token_id", "pretraining_tp", "is_llama_config", "transformers.js_config", "cache_implementation"}
)
ROPE = (
    Field("rope_theta", "base", None, optional=float),
    Field("rope_scaling", "scaling", {}),
    Field("rope_parameters", "parameters", {}),
)
RESPELLED = ("rope_parameters", "layer_types", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern")

FACTOR = Field("factor", "factor", 0.0)  # absent, it is refused: a factor is positive
TRAINED = Field("original_max_position_embeddings", "trained_len", 0)  # absent, it is max_position_embeddings
TURNS = (Field("low_freq_factor", "low", 1.0), Field("high_freq_factor", "high", 4.0))
RAMP = (
    Field("beta_fast", "beta_fast", 32.0),
    Field("beta_slow", "beta_slow", 1.0),
    Field("truncate", "round_ramp", True),
    Field("attention_factor", "gain", None, optional=float),
)
DEEPSEEK = (Field("mscale", "mscale", 0.0), Field("mscale_all_dim", "all_dim", 0.0))  # two numbers for the gain
STRETCHES: dict[str, tuple[type[Any], tuple[Field, ...]]] = {
    "linear": (Linear, (FACTOR,)),
    "dynamic": (DynamicNTK, (FACTOR,)),
    "llama3": (Llama3, (FACTOR, *TURNS, TRAINED)),
    "yarn": (Yarn, (FACTOR, *RAMP, TRAINED)),
}
KINDS = {kind: kind for kind in ("default", *STRETCHES)}


def read_decoder(
    config: Json,
    fields: tuple[Field, ...],
    *,
    settled: Mapping[str, tuple[Any, ...]] = {},
    harmless: Collection[str] = (),
) -> dict[str, Any]:
    """Return what a decoder's config says in our names, and of `ROPE` for `take_rotary`; most use the same parts."""
    values = read_fields(config, fields + ROPE, settled={**SETTLED, **settled}, harmless=HARMLESS.union(harmless))
    return {"norm": "rms", "feed_forward": "gated", "biases": "none", "dropout": 0.0, **values}


def take_rotary(values: dict[str, Any]) -> RotaryConfig:
    """Take `ROPE` out of `values` and return what it says."""
    base, scaling, parameters = (values.pop(field.ours) for field in ROPE)
    if scaling and parameters and scaling != parameters:
        raise CheckpointError("rope_scaling and rope_parameters say different things: keep one of them")
    where = "rope_scaling" if scaling else "rope_parameters"
    return read_rotary(scaling or parameters, 10_000.0 if base is None else base, values["max_len"], where)


def read_rotary(part: Json, base: float, max_len: int, where: str) -> RotaryConfig:
    """Return what one object says of frequencies; `base` and `max_len` hold where it does not say otherwise."""
    kind = part.get("rope_type") or part.get("type") or "default"
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"{where}: rope_type {kind!r} is not computed here{nearest(str(kind), list(KINDS))}")
    stretch, fields = STRETCHES.get(kind, (None, ()))
    own = (Field("rope_theta", "base", base), Field("rope_type", "kind", kind, KINDS), Field("type", "_", kind, KINDS))
    extra = DEEPSEEK if stretch is Yarn else ()
    values = read_nested(part, own + extra + fields, where=where, settled={"partial_rotary_factor": (1.0,)})
    base, mscale, all_dim = values.pop("base"), values.pop("mscale", 0.0), values.pop("all_dim", 0.0)
    del values["kind"], values["_"]
    if stretch is None:
        return RotaryConfig(base=base)
    if stretch is not Linear:
        values["trained_len"] = values.get("trained_len") or max_len
    if stretch is Yarn and not values["factor"]:
        values["factor"] = max_len / max(values["trained_len"], 1)
    built = stretch(**values)
    if mscale and all_dim and built.gain is None:
        logarithm = 0.1 * max(math.log(built.factor), 0.0)
        built = replace(built, gain=(mscale * logarithm + 1) / (all_dim * logarithm + 1))
    return RotaryConfig(base=base, stretch=built)


def write_decoder(config: GPTConfig, fields: tuple[Field, ...]) -> dict[str, Any]:
    """Return what `read_decoder` and `take_rotary` read, in the words of transformers 4."""
    rotary, scaling = config.rotary or RotaryConfig(), None
    for kind, (stretch, own) in STRETCHES.items():
        if isinstance(rotary.stretch, stretch):
            scaling = {"rope_type": kind, **write_fields(rotary.stretch, own)}
    return {**write_fields(config, fields), "rope_theta": rotary.base, "rope_scaling": scaling}


WINDOWS = ("full_attention", "sliding_attention")


def read_windows(kinds: list[Any], window: int | None, n_layers: int) -> tuple[int | None, ...]:
    """Return the window of every layer, as `layer_types` describes them."""
    if len(kinds) != n_layers or any(kind not in WINDOWS for kind in kinds):
        raise CheckpointError(f"layer_types: expected {' or '.join(WINDOWS)} for each of {n_layers} layers")
    if window is None and WINDOWS[1] in kinds:
        raise CheckpointError("some layers see a window, but sliding_window does not say how large it is")
    return shortest(tuple(window if kind == WINDOWS[1] else None for kind in kinds)) or (None,)


def write_windows(config: GPTConfig) -> dict[str, Any]:
    """Return what `read_windows` reads; of several sizes, one: the config then does not read back, and is refused."""
    windows = [config.window(layer) for layer in range(config.n_layers)]
    kinds = [WINDOWS[window is not None] for window in windows]
    return {"sliding_window": next((size for size in windows if size is not None), None), "layer_types": kinds}


def spelled_out(config: GPTConfig) -> GPTConfig:
    """Return `config` with nothing left to its defaults."""
    d_head = config.d_head or config.d_model // config.n_heads
    windows = shortest(tuple(config.window(layer) for layer in range(config.n_layers)))
    scale = d_head**-0.5 if config.scale is None else config.scale
    n_kv_heads, rotary_local = config.n_kv_heads or config.n_heads, config.rotary_local or config.rotary
    return replace(
        config, n_kv_heads=n_kv_heads, d_head=d_head, windows=windows, scale=scale, rotary_local=rotary_local
    )


def plain(config: GPTConfig) -> GPTConfig:
    """Return `config` spelled out, and without dropout, of which decoders since Llama know only attention's."""
    return replace(spelled_out(config), dropout=0.0)


def shortest(windows: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Return the shortest beginning of `windows` that repeats over the layers."""
    lengths = range(1, len(windows) + 1)
    return next((windows[:n] for n in lengths if windows[n:] == windows[: len(windows) - n]), ())
