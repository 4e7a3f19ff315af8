"""See what attention does, in any Transformer, while it runs at full speed.

    import clearhead

    model = clearhead.load("sentiment")                # a shipped default, a checkpoint folder, or a hub name
    with clearhead.watch(model) as seen:               # its own fused kernels run; nothing is computed twice
        model(tokens)
    seen.map(layer=2, head=4)                          # the exact weights, computed now

Reading order of the source: attention -> derivation -> positions -> block -> models/bert -> training/objectives
-> training/loop -> classification -> packed -> checkpoints/mapping -> seeing/recorder -> seeing/maps/formula -> cli.

Names are imported when first used: `import clearhead` costs a few milliseconds, `clearhead --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clearhead.attention import CAUSAL, EVERYWHERE, Mask, MultiHeadAttention, attend, attention_map
    from clearhead.block import Block, FeedForward, GatedFeedForward, RMSNorm, post_norm, pre_norm
    from clearhead.cache import KVCache, LayerCache
    from clearhead.checkpoints import find, load, save, with_head
    from clearhead.classification import classify, embed, fastest
    from clearhead.data.images import ImageProcessor
    from clearhead.data.tokenizer import Tokenizer
    from clearhead.derivation import Derivation, derive, find_word
    from clearhead.errors import (
        CheckpointError,
        ClearheadError,
        ConfigError,
        InputError,
        Interrupted,
        MissingExtra,
        ShapeError,
        TrainingError,
        WatchError,
    )
    from clearhead.generation import generate
    from clearhead.models.bert import (
        Bert,
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
    from clearhead.models.gpt import GPT, GPTConfig, GPTForCausalLM, RotaryConfig
    from clearhead.models.vit import ViT, ViTConfig, ViTForImageClassification
    from clearhead.packed import pack
    from clearhead.positions import ALiBi, LearnedPositions, Order, RelativeBias, SinusoidalPositions
    from clearhead.rotary import Rotary
    from clearhead.seeing import Edits, Effects, Recording, edit, effect, estimate, open_recording, watch
    from clearhead.training.run import run_recipe

__version__ = "0.1.0"

_HOME = {
    "clearhead.attention": ("CAUSAL", "EVERYWHERE", "Mask", "MultiHeadAttention", "attend", "attention_map"),
    "clearhead.block": ("Block", "FeedForward", "GatedFeedForward", "RMSNorm", "post_norm", "pre_norm"),
    "clearhead.cache": ("KVCache", "LayerCache"),
    "clearhead.checkpoints": ("find", "load", "save", "with_head"),
    "clearhead.classification": ("classify", "embed", "fastest"),
    "clearhead.data.images": ("ImageProcessor",),
    "clearhead.data.tokenizer": ("Tokenizer",),
    "clearhead.derivation": ("Derivation", "derive", "find_word"),
    "clearhead.errors": (
        "CheckpointError",
        "ClearheadError",
        "ConfigError",
        "InputError",
        "Interrupted",
        "MissingExtra",
        "ShapeError",
        "TrainingError",
        "WatchError",
    ),
    "clearhead.generation": ("generate",),
    "clearhead.models.bert": (
        "Bert",
        "BertConfig",
        "BertForMaskedLM",
        "BertForSequenceClassification",
        "BertForTokenClassification",
    ),
    "clearhead.models.encoder_decoder": ("EncoderDecoder", "EncoderDecoderConfig"),
    "clearhead.models.gpt": ("GPT", "GPTConfig", "GPTForCausalLM", "RotaryConfig"),
    "clearhead.models.vit": ("ViT", "ViTConfig", "ViTForImageClassification"),
    "clearhead.packed": ("pack",),
    "clearhead.positions": ("ALiBi", "LearnedPositions", "Order", "RelativeBias", "SinusoidalPositions"),
    "clearhead.rotary": ("Rotary",),
    "clearhead.seeing": ("Edits", "Effects", "Recording", "edit", "effect", "estimate", "open_recording", "watch"),
    "clearhead.training.run": ("run_recipe",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value
    raise AttributeError(f"module 'clearhead' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
