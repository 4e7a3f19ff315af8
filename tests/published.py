"""Small random checkpoints as others publish them: made and opened by transformers, for the tests that compare."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ENCODERS = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert"}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
ARCHITECTURES = [name + head for name in ENCODERS.values() for head in HEADS]
LABELS = ("negative", "neutral", "positive")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
}
DISTIL_SIZES = {
    "vocab_size": 61,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 37,
    "max_position_embeddings": 40,
}


def make(architecture: str, **settings: Any) -> Any:
    """Return transformers' model of that name, every parameter random: fresh norms and biases would hide mistakes."""
    family = max((name for name in ENCODERS.values() if architecture.startswith(name)), key=len)
    sizes = DISTIL_SIZES if family == "DistilBert" else SIZES
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **labels, **settings})
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, std=0.2)
    return model


def publish(folder: Path, architecture: str, **settings: Any) -> Path:
    """Save such a model and return its folder."""
    make(architecture, **settings).save_pretrained(folder)
    return folder


def reopen(folder: Path, architecture: str) -> Any:
    """Open a folder with transformers' own Auto class, which must find every tensor and no other."""
    head = next(head for head in HEADS if architecture.endswith(head))
    auto = getattr(transformers, f"Auto{'ModelFor' if head != 'Model' else ''}{head.removeprefix('For')}")
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == architecture
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def ragged(pad: int) -> tuple[Tensor, Tensor]:
    """Return texts of several lengths, padded on the right, and their lengths."""
    lengths = torch.tensor([9, 1, 17, 4])
    tokens = torch.randint(5, 61, (4, 17))
    return tokens.masked_fill(torch.arange(17) >= lengths[:, None], pad), lengths


def answers(theirs: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return transformers' numbers: hidden states or logits."""
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        return theirs(input_ids=tokens, attention_mask=mask)[0]


def edit(folder: Path, **keys: Any) -> None:
    """Change keys of a config.json; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# ---------------------------------------------------------------- decoders

LLAMA_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
GEMMA_SIZES = {**LLAMA_SIZES, "head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 24}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {  # architecture: its config class, and sizes
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "LlamaForCausalLM": ("LlamaConfig", LLAMA_SIZES),
    "MistralForCausalLM": ("MistralConfig", {**LLAMA_SIZES, "sliding_window": 5}),
    "Qwen2ForCausalLM": ("Qwen2Config", LLAMA_SIZES),
    "Qwen3ForCausalLM": ("Qwen3Config", {**LLAMA_SIZES, "head_dim": 12}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GEMMA_SIZES, "attn_logit_softcapping": 2.0}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**GEMMA_SIZES, "sliding_window_pattern": 3}),
}
TRUNKS = {
    "GPT2Model": "GPT2LMHeadModel",
    "Gemma3TextModel": "Gemma3ForCausalLM",
    **{f"{name}Model": f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2")},
}


def make_decoder(architecture: str, **settings: Any) -> Any:
    """Return transformers' decoder of that name, every parameter random."""
    config_class, sizes = DECODERS[TRUNKS.get(architecture, architecture)]
    model = getattr(transformers, architecture)(getattr(transformers, config_class)(**{**sizes, **settings})).eval()
    around = 0.0 if "Gemma" in architecture else 1.0  # Gemma stores norms less one
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.normal_(mean=around if is_norm else 0.0, std=0.2)
    return model


def padded(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return texts of these lengths that end together, padded on the left, and where each starts."""
    starts = torch.tensor([max(lengths) - length for length in lengths])
    tokens = torch.randint(3, 61, (len(lengths), max(lengths)))
    return tokens.masked_fill(torch.arange(max(lengths)) < starts[:, None], 0), starts


def continuations(theirs: Any, tokens: Tensor, starts: Tensor) -> Tensor:
    """Return transformers' numbers for texts padded on the left: hidden states or logits."""
    mask = (torch.arange(tokens.shape[1]) >= starts[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return theirs(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)[0]


def reopen_decoder(folder: Path, architecture: str) -> Any:
    """Open a folder with transformers, which must find every tensor and no other."""
    model, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


# ---------------------------------------------------------------- pictures

VIT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu",
}
VISION: dict[str, tuple[str, ...]] = {  # family: what stands behind its name in the architectures
    "ViT": ("Model", "ForImageClassification"),
    "DeiT": ("Model", "ForImageClassification", "ForImageClassificationWithTeacher"),
    "Dinov2": ("Model", "ForImageClassification"),
    "Dinov2WithRegisters": ("Model", "ForImageClassification"),
}
VISION_ARCHITECTURES = [name + head for name, heads in VISION.items() for head in heads]


def make_vision(architecture: str, **settings: Any) -> Any:
    """Return transformers' vision model of that name, every parameter random."""
    family = max((name for name in VISION if architecture.startswith(name)), key=len)
    sizes = VIT_SIZES if family.startswith("Dinov2") else {**VIT_SIZES, "intermediate_size": 37}
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **labels, **settings})
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = ("norm" in name and name.endswith("weight")) or "lambda" in name
            parameter.normal_(mean=1.0 if is_scale else 0.0, std=0.2)
    return model


def seen_by(theirs: Any, pixels: Tensor) -> Tensor:
    """Return transformers' numbers for pictures of any size: hidden states or logits."""
    resized = {} if type(theirs).__name__.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        return theirs(pixel_values=pixels, **resized)[0]


# ---------------------------------------------------------------- encoder-decoders

BART_SIZES = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 40,
    "pad_token_id": 2,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 1,
}
T5_SIZES = {"vocab_size": 61, "d_model": 32, "d_kv": 6, "d_ff": 37, "num_layers": 2, "num_heads": 4}
SOUND_SIZES = {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 40, "bos_token_id": 1}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "MarianMTModel": ("MarianConfig", {**BART_SIZES, "scale_embedding": True, "activation_function": "swish"}),
    "BartForConditionalGeneration": ("BartConfig", BART_SIZES),
    "T5ForConditionalGeneration": ("T5Config", {**T5_SIZES, "num_decoder_layers": 3}),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {**{key: value for key, value in BART_SIZES.items() if "max" not in key}, **SOUND_SIZES},
    ),
}


def make_encoder_decoder(architecture: str, **settings: Any) -> Any:
    """Return transformers' encoder-decoder of that name, every parameter random, and the bias of the logits too."""
    config_class, sizes = ENCODER_DECODERS[architecture]
    model = getattr(transformers, architecture)(getattr(transformers, config_class)(**{**sizes, **settings})).eval()
    with torch.no_grad():
        for name, parameter in (*model.named_parameters(), *model.named_buffers()):
            is_norm = "norm" in name and name.endswith("weight")
            if "sinus" not in name and not (architecture.startswith("Marian") and "embed_positions" in name):
                parameter.normal_(mean=1.0 if is_norm else 0.0, std=0.2)
    return model


def sources(architecture: str) -> tuple[Tensor, Tensor | None]:
    """Return three sources of different lengths and their lengths; Whisper has sounds of one length."""
    if architecture.startswith("Whisper"):
        return torch.randn(3, 8, 24), None
    lengths = torch.tensor([13, 1, 6])
    tokens = torch.randint(3, 61, (3, 13))
    return tokens.masked_fill(torch.arange(13) >= lengths[:, None], 0), lengths


def translations(theirs: Any, source: Tensor, lengths: Tensor | None, target: Tensor) -> Tensor:
    """Return transformers' logits of every token that follows one of `target`."""
    with torch.no_grad():
        if lengths is None:
            return theirs(input_features=source, decoder_input_ids=target, use_cache=False)[0]
        mask = (torch.arange(source.shape[1]) < lengths[:, None]).long()
        return theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target, use_cache=False)[0]
