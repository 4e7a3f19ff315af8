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
