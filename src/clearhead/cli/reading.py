"""What `derive` and `see` both begin with: a model that is watched while it reads a text, a picture, or a text and
what it makes of it.

Words are named as the model has them: pieces of a text, patches by row and column, and in an encoder-decoder the source
as what is looked at. There a row is named by the word that is being written from it, not by the one before, which the
decoder reads: so letters stand beside the sounds they become.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.attention import Mask, MultiHeadAttention
from clearhead.cli.answers import FIRST, end_tokens, said_tokens
from clearhead.cli.opening import open_for
from clearhead.cli.output import note, require_text
from clearhead.data.images import ImageProcessor, find_images
from clearhead.data.tokenizer import Tokenizer
from clearhead.derivation import Derivation, derive, find_word
from clearhead.errors import InputError
from clearhead.explorer.view import Source, View, look, pick_query
from clearhead.generation import Never, answers, generate
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.vit import ViTConfig
from clearhead.seeing import Recording, watch

LONGEST_ANSWER = 256  # tokens that an encoder-decoder writes before it is looked at


@dataclass(frozen=True)
class Asked:
    """What a person asks for; what is None is chosen, and `View.chosen` says how."""

    query: str | None = None
    layer: int | None = None
    head: int | None = None
    target: str | None = None  # of an encoder-decoder; None: what it writes itself


@dataclass(frozen=True)
class Given:
    """What an attention layer was given for one text: vectors, who may look at whom, and what is looked at if not x."""

    x: Tensor
    mask: Mask
    memory: Tensor | None


@dataclass(frozen=True)
class Reading:
    """A text or a picture that a model has read, seen from one word; `target` is what was written of it."""

    text: str
    view: View
    attention: MultiHeadAttention
    given: Given
    target: str | None = None

    def derive(self) -> Derivation:
        """Derive the head that is seen."""
        view, given = self.view, self.given
        return derive(
            self.attention,
            given.x,
            view.words,
            query=view.query,
            head=view.head,
            mask=given.mask,
            memory=given.memory,
            memory_words=view.keys if view.crosses else (),
            thing="patch" if view.patches else "word",
        )


class Watched(ABC):
    """A model, opened by its name, that is watched while it reads."""

    reads = "text"

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.model = folder, model
        self.given: dict[str, Given] = {}
        for place, module in model.named_modules():
            if isinstance(module, MultiHeadAttention):
                module.register_forward_pre_hook(self.keeping(place), with_kwargs=True)

    def inputs(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield what is to be read one by one."""
        yield from texts

    @abstractmethod
    def read(self, text: str, asked: Asked) -> Reading:
        """Read and look; InputError for a query, a layer or a head that is not there."""

    def keeping(self, place: str) -> Callable[..., None]:
        """Return a hook that keeps what the layer at `place` is given, its one text without the batch."""

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            memory = inputs[1][0] if len(inputs) > 1 and inputs[1] is not None else None
            self.given[place] = Given(inputs[0][0], named["mask"], memory)

        return keep

    def reading(self, text: str, view: View, target: str | None = None) -> Reading:
        """Put together what was seen and what the layer that is seen was given."""
        name = next(one.name for one in view.seen.layers if one.index == view.layer)
        attention = self.model.get_submodule(name)
        assert isinstance(attention, MultiHeadAttention)
        return Reading(text, view, attention, self.given[name], target)


class WatchedText(Watched):
    """A model that reads one text: a BERT, a GPT."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__(folder, model)
        self.tokenizer = Tokenizer.load(folder)

    def read(self, text: str, asked: Asked) -> Reading:
        """Read a text; what is too long for the model is left out and said."""
        require_text(text)
        if asked.target is not None:
            raise InputError(f"a {type(self.model).__name__} writes no target: --target is for encoder-decoders")
        config: Any = self.model.config
        ids, words, special = pieces(self.tokenizer, text, config.max_len)
        with watch(self.model) as seen, torch.no_grad():
            self.model(torch.tensor([ids]))
        return self.reading(text, seen_from(seen, words, special, asked))


class WatchedPicture(Watched):
    """A model that reads a picture, whose words are patches: a ViT."""

    reads = "file"

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__(folder, model)
        self.processor = ImageProcessor.load(folder)

    def inputs(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield the pictures by name, those of a folder one by one."""
        yield from map(str, find_images(texts))

    def read(self, text: str, asked: Asked) -> Reading:
        """Read the picture in a file."""
        if asked.target is not None:
            raise InputError(f"a {type(self.model).__name__} writes no target: --target is for encoder-decoders")
        config: Any = self.model.config
        pixels = self.processor.read(text)
        patches = pixels.shape[-2] // config.patch_size, pixels.shape[-1] // config.patch_size
        names = ["class"] * config.class_token + ["distilled"] * config.distilled_token
        names += [f"register-{i}" for i in range(config.n_registers)]
        words = [*names, *(f"{row},{column}" for row in range(patches[0]) for column in range(patches[1]))]
        with watch(self.model) as seen, torch.no_grad():
            self.model(pixels[None])
        query = patch_at(words, patches, asked.query)
        require_place(seen, asked)
        special = [i < len(names) for i in range(len(words))]
        view = look(seen, words, special, query=query, layer=asked.layer, head=asked.head, patches=patches)
        return self.reading(text, view)


class WatchedPair(Watched):
    """An encoder-decoder, whose target looks at the source."""

    def __init__(self, folder: Path, model: EncoderDecoder) -> None:
        super().__init__(folder, model)
        self.pair, self.tokenizer, self.ends = model, Tokenizer.load(folder), end_tokens(folder) | {model.config.end_id}
        self.forced = said_tokens(folder, FIRST)

    def read(self, text: str, asked: Asked) -> Reading:
        """Read a text and write the target, the model's own if none is asked for; look from the one at the other."""
        require_text(text)
        config: EncoderDecoderConfig = self.pair.config
        ids, words, special = pieces(self.tokenizer, text, config.max_source_len)
        if asked.target is None:
            written = self.write(ids)
        else:
            require_text(asked.target, "--target")
            written = pieces(self.tokenizer, asked.target, config.max_target_len)[0]
        read = torch.tensor([[config.start_id, *written[:-1]]])
        with watch(self.pair, layers=["*cross_attention"]) as seen, torch.no_grad():
            self.pair(torch.tensor([ids]), read)
        targets = [self.tokenizer.backend.id_to_token(i) or str(i) for i in written]
        ended = [i in self.ends for i in written]
        view = seen_from(numbered_anew(seen), targets, ended, asked, Source(words, special))
        return self.reading(text, view, self.tokenizer.decode(written))

    def write(self, ids: list[int]) -> list[int]:
        """Return what the model writes itself, the likeliest token each time."""
        never = Never({self.pair.config.pad_id} - self.ends)
        begin = [self.pair.config.start_id, *self.forced]
        longest = min(LONGEST_ANSWER, self.pair.config.max_target_len - len(begin))
        steps = generate(self.pair, [ids], max_new_tokens=longest, adjust=[never], stop=self.ends, begin=begin)
        return [*self.forced, *answers(steps, 1)[0]]


def open_watched(verb: str, name: str) -> Watched:
    """Return the model called `name`, ready to be watched; InputError where it reads neither text nor pictures."""
    folder, model = open_for(verb, name)
    if isinstance(model, EncoderDecoder):
        return WatchedPair(folder, model)
    kind = WatchedPicture if isinstance(model.config, ViTConfig) else WatchedText
    return kind(folder, model)


def seen_from(
    seen: Recording, words: Sequence[str], special: Sequence[bool], asked: Asked, source: Source | None = None
) -> View:
    """Return the view from the word asked for, or from the last content word."""
    require_place(seen, asked)
    query = pick_query(words, special) if asked.query is None else find_word(words, asked.query)
    return look(seen, words, special, query=query, layer=asked.layer, head=asked.head, source=source)


def pieces(tokenizer: Tokenizer, text: str, max_len: int) -> tuple[list[int], list[str], list[bool]]:
    """Return the tokens of a text, their names, and which stand around it; as many as the model can read."""
    encoded = tokenizer.encode(text, max_len=max_len)
    if encoded.truncated:
        note(f"the model reads {max_len} pieces at once: the last {encoded.truncated:,} are left out")
    return encoded.ids, encoded.pieces, encoded.special


def patch_at(words: Sequence[str], patches: tuple[int, int], query: str | None) -> int:
    """Return where a patch stands among the words, by row,column or by its number; without one, the class token.

    A picture that has no class token is looked at from its middle.
    """
    n_rows, n_columns = patches
    before = len(words) - n_rows * n_columns
    if query is None:
        return 0 if before else before + (n_rows // 2) * n_columns + n_columns // 2
    name = query.replace(" ", "")
    if name.isdecimal() and int(name) < n_rows * n_columns:
        return before + int(name)
    if name not in words:
        others = "".join(f", or {word}" for word in words[:before])
        raise InputError(
            f"there is no patch {query!r}: expected row,column from 0,0 to {n_rows - 1},{n_columns - 1}, or a number "
            f"from 0 to {n_rows * n_columns - 1}{others}"
        )
    return list(words).index(name)


def numbered_anew(seen: Recording) -> Recording:
    """Return a recording whose layers are counted from 0: those that were asked for alone."""
    found = Recording()
    for layer in seen.layers:
        found.calls[found.index(layer.name)] = seen.calls[layer.index]
    return found


def require_place(seen: Recording, asked: Asked) -> None:
    """Raise InputError where there is no such layer or head."""
    n_layers, n_heads = len(seen.layers), seen.layers[0].n_heads
    for what, number, n in (("layer", asked.layer, n_layers), ("head", asked.head, n_heads)):
        if number is not None and not 0 <= number < n:
            raise InputError(f"there is no {what} {number}: this model has {n}, counted from 0")
