"""Open a model for a command, or say in one sentence which commands it is for."""

from pathlib import Path
from typing import Any

from torch import nn

from clearhead.checkpoints import find, load, origin
from clearhead.checkpoints.files import CONFIG, DEFAULTS
from clearhead.cli.output import note
from clearhead.errors import InputError, a
from clearhead.models.bert import Bert, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.models.gpt import GPTForCausalLM
from clearhead.models.modernbert import ModernBert, ModernBertForMaskedLM, ModernBertForSequenceClassification
from clearhead.models.vit import DistilledViTForImageClassification, ViTForImageClassification

WATCHED = ("derive", "see", "explore")
# What a command expects, in words; and which commands a model is for.
EXPECTED = {
    "classify": "a classifier of texts or pictures",
    "embed": "an encoder of texts, such as a BERT",
    "generate": "a decoder, such as a GPT",
    "translate": "an encoder-decoder that reads text",
    "transcribe": "an encoder-decoder that hears, such as a Whisper",
    "derive": "a model that reads text or pictures",
    "see": "a model that reads text or pictures",
    "explore": "a model that reads text or pictures",
    "effect": "a classifier of texts, or a decoder such as a GPT",
    "profile": "a model that reads one text, such as a BERT or a GPT",
}
LABELS_TEXTS = BertForSequenceClassification | ModernBertForSequenceClassification
LABELS_PICTURES = ViTForImageClassification | DistilledViTForImageClassification
READS_TEXTS = Bert | BertForMaskedLM | BertForTokenClassification | ModernBert | ModernBertForMaskedLM
FITS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (LABELS_TEXTS, ("classify", "embed", "effect", "profile", *WATCHED)),
    (READS_TEXTS, ("embed", "profile", *WATCHED)),
    (GPTForCausalLM, ("generate", "effect", "profile", *WATCHED)),
    (LABELS_PICTURES, ("classify", *WATCHED)),
)
SHIPPED = {"sentiment": "of texts", "pictures": "of pictures", "novels": "that writes", "pronounce": "that translates"}


def open_for(verb: str, name: str) -> tuple[Path, nn.Module]:
    """Return the folder and the model called `name`; InputError where `verb` is not for it, naming what is."""
    if name in SHIPPED and not (DEFAULTS / name / CONFIG).is_file() and not Path(name).is_dir():
        raise InputError(
            f"no model {SHIPPED[name]} ships with this copy of clearhead: pass --model with the folder, or the name "
            f"on the Hugging Face hub (organisation/model), of {EXPECTED[verb]}"
        )
    folder = find(name)
    model = load(folder, frozen=True)  # no command here trains it
    if (came_from := origin(model)) is not None:
        for remark in came_from.notes:
            note(remark)
    if verb not in (fits := verbs_for(model)):
        others = f"It is for {' and '.join(filter(None, (', '.join(fits[:-1]), fits[-1])))}"
        raise InputError(
            f"{name} is {a(type(model).__name__)}: `clearhead {verb}` expects {EXPECTED[verb]}. {others}; "
            f"`clearhead models` lists what ships"
        )
    return folder, model


def verbs_for(model: nn.Module) -> tuple[str, ...]:
    """Return the commands that a model is for."""
    return verbs_of(type(model), hears=isinstance(model, EncoderDecoder) and model.front is not None)


def verbs_of(kind: type[nn.Module], *, hears: bool = False) -> tuple[str, ...]:
    """Return the commands that models of a class are for."""
    if issubclass(kind, EncoderDecoder):
        return ("transcribe",) if hears else ("translate", *WATCHED)
    return next((verbs for kinds, verbs in FITS if issubclass(kind, kinds)), WATCHED)
