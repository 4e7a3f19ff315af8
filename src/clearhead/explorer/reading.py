"""Models opened by name, and what becomes of a text or a picture before one of them reads it.

A `Reader` turns a text, a picture, or a text and its translation into the tensors that the model is called with, and
says what their positions are. It runs nothing but an encoder-decoder that is asked for its own translation. Used by
`clearhead derive` and `see`, and by the explorer's `Runner`. Next: `scene.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clearhead.attention import Mask, MultiHeadAttention
from clearhead.checkpoints.endings import FORCED_FIRST, end_tokens, stated_tokens
from clearhead.data.images import ImageProcessor
from clearhead.data.tokenizer import Encoded, Tokenizer
from clearhead.errors import InputError, a
from clearhead.explorer.axes import Axis, text_axis
from clearhead.explorer.pictures import Picture, area, encode, opened
from clearhead.generation import Never, generate
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTForCausalLM
from clearhead.models.vit import ViTConfig

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_ANSWER = 256  # tokens that an encoder-decoder writes before it is looked at
MAX_ANSWERS = 10  # next tokens or labels that are listed


@dataclass(frozen=True, eq=False)
class Prepared:
    """One input, ready to be read.

    Attributes:
        inputs: What the model is called with, as one batch.
        axes: The axes of its maps: one text or picture, or source and target.
        tokens: The ids of the axis that the model attends within, where it has ids.
        written: The text of the target, of an encoder-decoder.
        picture: The picture that was read.
        notes: What was left out.
    """

    inputs: tuple[Tensor, ...]
    axes: tuple[Axis, ...]
    tokens: Tensor | None = None
    written: str | None = None
    picture: Picture | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Given:
    """What an attention layer was given for one text: vectors, who may look at whom, and what is looked at if not x."""

    x: Tensor
    mask: Mask
    memory: Tensor | None


class Reader(ABC):
    """A model and what prepares its inputs.

    `given` holds what each attention layer was given when the model ran last, by the layer's name.
    """

    reads = "text"

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.model = folder, model
        self.config: Any = model.config
        self.given: dict[str, Given] = {}
        self.running = False
        for name, module in model.named_modules():
            if isinstance(module, MultiHeadAttention):
                module.register_forward_pre_hook(self._keeping(name), with_kwargs=True)

    @abstractmethod
    def prepare(self, given: "str | Path | Image", target: str | None = None) -> Prepared:
        """Return an input ready to be read; InputError where it cannot be."""

    def run(self, prepared: Prepared) -> Any:
        """Call the model, without gradients."""
        self.given, self.running = {}, True
        try:
            with torch.no_grad():
                return self.model(*prepared.inputs)
        finally:
            self.running = False

    def answer(self, prepared: Prepared, output: Any) -> dict[str, Any] | None:
        """Return what the model says of an input, as plain values, or None where it says nothing."""
        return None

    def _keeping(self, name: str) -> Callable[..., None]:
        """Return a hook that keeps what the layer `name` is given, its one text without the batch."""

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            if not self.running:  # it writes: what the last run was given is of a scene
                return
            memory = inputs[1][0] if len(inputs) > 1 and inputs[1] is not None else None
            self.given[name] = Given(inputs[0][0], named["mask"], memory)

        return keep

    def refuse_target(self, target: str | None) -> None:
        """Raise InputError where a target is given to a model that writes none."""
        if target is not None:
            raise InputError(f"{a(type(self.model).__name__)} writes no target: --target is for encoder-decoders")


class TextReader(Reader):
    """A model that reads one text: a BERT, a GPT."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__(folder, model)
        self.tokenizer = Tokenizer.load(folder)

    def prepare(self, given: "str | Path | Image", target: str | None = None) -> Prepared:
        """Return a text ready to be read, cut to what the model can read."""
        self.refuse_target(target)
        text = as_text(given)
        encoded, notes = cut(self.tokenizer, text, getattr(self.config, "context_len", self.config.max_len))
        ids = encoded.require_known(self.config.vocab_size).ids
        return self.prepare_ids(ids, encoded.special, encoded.spans, notes=notes)

    def prepare_ids(
        self,
        ids: Sequence[int],
        special: Sequence[bool] = (),
        spans: Sequence[tuple[int, int]] | None = None,
        *,
        prompt: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> Prepared:
        """Return tokens ready to be read, of which the first `prompt` were given and the model wrote the rest."""
        axis = text_axis(self.tokenizer, ids, special, spans, prompt=prompt)
        tokens = torch.tensor(list(ids))
        return Prepared((tokens[None],), (axis,), tokens, notes=notes)

    def answer(self, prepared: Prepared, output: Any) -> dict[str, Any] | None:
        """Return the probabilities of labels, or of the next token of a model that writes."""
        if isinstance(self.model, GPTForCausalLM):
            return next_tokens(output[0, -1], self.tokenizer)
        labels = getattr(self.config, "labels", ())
        return labelled(output[0], labels) if isinstance(output, Tensor) and output.ndim == 2 else None


class PictureReader(Reader):
    """A model that reads a picture, whose words are patches: a ViT."""

    reads = "file"

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__(folder, model)
        self.processor = ImageProcessor.load(folder)
        self.processor.require_fits(self.config.patch_size, self.config.image_size)

    def prepare(self, given: "str | Path | Image", target: str | None = None) -> Prepared:
        """Return the picture in a file, or an open one, ready to be read."""
        self.refuse_target(target)
        image = opened(given, self.processor)
        pixels = self.processor.read(image)
        config = self.config
        grid = pixels.shape[-2] // config.patch_size, pixels.shape[-1] // config.patch_size
        names = ["class"] * config.class_token + ["distilled"] * config.distilled_token
        names += [f"register-{i}" for i in range(config.n_registers)]
        pieces = (*names, *(f"{row},{column}" for row in range(grid[0]) for column in range(grid[1])))
        special = tuple(i < len(names) for i in range(len(pieces)))
        shown = encode(image)
        place = area(self.processor, image, shown, "picture", grid, len(names))
        axis = Axis("patches", pieces, special, pieces, picture=place)
        return Prepared((pixels[None],), (axis,), picture=shown)

    def answer(self, prepared: Prepared, output: Any) -> dict[str, Any] | None:
        """Return the probabilities of labels."""
        return labelled(output[0], self.config.labels) if isinstance(output, Tensor) and output.ndim == 2 else None


class PairReader(Reader):
    """An encoder-decoder, whose target looks at the source."""

    def __init__(self, folder: Path, model: EncoderDecoder) -> None:
        super().__init__(folder, model)
        self.pair, self.tokenizer = model, Tokenizer.load(folder)
        n_tokens = model.config.vocab_size
        self.ends = end_tokens(folder, n_tokens) | {model.config.end_id}
        self.forced = stated_tokens(folder, FORCED_FIRST, n_tokens)

    def prepare(self, given: "str | Path | Image", target: str | None = None) -> Prepared:
        """Return a text and its target, the model's own where none is given, ready to be read."""
        text = as_text(given)
        config: EncoderDecoderConfig = self.pair.config
        source, notes = cut(self.tokenizer, text, config.max_source_len)
        source.require_known(config.vocab_size)
        if target is None:
            written = list(self.write(source.ids))
        else:
            cut_target, more = cut(self.tokenizer, as_text(target, "--target"), config.max_target_len)
            written, notes = cut_target.require_known(config.vocab_size).ids, (*notes, *more)
        return self.prepare_pair(source, written, notes)

    def prepare_pair(self, source: Encoded, written: Sequence[int], notes: tuple[str, ...] = ()) -> Prepared:
        """Return a source and the tokens written of it, ready to be read.

        A row of the target is named by the token that is being written from it, not by the one before, which the
        decoder reads: so letters stand beside the sounds they become.
        """
        read = torch.tensor([[self.pair.config.start_id, *written[:-1]]])
        ended = [token in self.ends for token in written]
        axes = (
            text_axis(self.tokenizer, source.ids, source.special, source.spans, name="source"),
            text_axis(self.tokenizer, written, ended, name="target"),
        )
        return Prepared((torch.tensor([source.ids]), read), axes, None, self.tokenizer.decode(written), notes=notes)

    def write(self, ids: list[int], longest: int = LONGEST_ANSWER) -> Iterator[int]:
        """Yield what the model writes itself, the likeliest token each time."""
        config = self.pair.config
        never = Never({config.pad_id} - self.ends)
        begin = [config.start_id, *self.forced]
        yield from self.forced
        longest = min(longest, config.max_target_len - len(begin))
        for step in generate(self.pair, [ids], max_new_tokens=longest, adjust=[never], stop=self.ends, begin=begin):
            yield from (token.id for token in step)

    def answer(self, prepared: Prepared, output: Any) -> dict[str, Any] | None:
        """Return the text that was written."""
        return {"kind": "text", "text": prepared.written}


def reader_of(folder: Path, model: nn.Module) -> Reader:
    """Return what prepares the inputs of a model that was loaded from a checkpoint folder."""
    if isinstance(model, EncoderDecoder):
        return PairReader(folder, model)
    kind = PictureReader if isinstance(model.config, ViTConfig) else TextReader
    return kind(folder, model)


def cut(tokenizer: Tokenizer, text: str, max_len: int | None) -> tuple[Encoded, tuple[str, ...]]:
    """Return the tokens of a text, as many as the model can read, and a remark where some are left out."""
    encoded = tokenizer.encode(text, max_len=max_len)
    if not encoded.truncated:
        return encoded, ()
    return encoded, (f"the model reads {max_len} pieces at once: the last {encoded.truncated:,} are left out",)


def as_text(given: Any, what: str = "the text") -> str:
    """Return a text that holds a word; InputError for anything else."""
    if not isinstance(given, str) or not given.strip():
        raise InputError(f"{what} is empty: expected at least one word, got {given!r}")
    try:
        given.encode()
    except UnicodeEncodeError as error:  # bytes that Python could not read when it was given the command
        raise InputError(f"{what} is not UTF-8: expected words, got {given!r}") from error
    return given


def labelled(logits: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Return the likeliest labels with their probabilities."""
    best = logits.float().softmax(-1).sort(descending=True)
    names = [labels[i] if i < len(labels) else str(i) for i in best.indices[:MAX_ANSWERS].tolist()]
    return {"kind": "labels", "labels": names, "probabilities": best.values[:MAX_ANSWERS].tolist()}


def next_tokens(logits: Tensor, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the likeliest next tokens with their probabilities."""
    best = logits.float().softmax(-1).topk(min(MAX_ANSWERS, logits.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist())
    return {
        "kind": "next",
        "tokens": [{"token": tokenizer.decode([token]), "probability": p, "id": token} for token, p in pairs],
    }
