"""One text, read by a model that is watched: what `derive` and `see` both begin with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.attention import Mask, MultiHeadAttention
from clearhead.checkpoints import find, load
from clearhead.cli.output import note, require_text
from clearhead.data.tokenizer import Encoded, Tokenizer
from clearhead.derivation import find_word
from clearhead.errors import InputError
from clearhead.explorer.view import View, look, pick_query
from clearhead.models.bert import BertConfig
from clearhead.models.gpt import GPTConfig
from clearhead.seeing import Recording, watch

Given = tuple[Tensor, Mask]  # (time, d_model), and who may look at whom
Hook = Callable[[nn.Module, tuple[Tensor, ...], dict[str, Any]], None]


class Reading:
    """A text that a model has read: the recording, seen from one word, and what each attention layer was given."""

    def __init__(self, text: str, name: str, *, query: str | None, layer: int | None, head: int | None) -> None:
        """Read `text` with the model called `name`; where query, layer or head is None, `view` says what was chosen.

        What is too long for the model is left out and said. InputError where query, layer or head do not exist, and
        for a model that does not read one text.
        """
        require_text(text)
        folder = find(name)
        self.model = load(folder)
        if not isinstance(self.model.config, BertConfig | GPTConfig):
            raise InputError(
                f"{name} is a {type(self.model).__name__}: expected a model that reads one text, such as a BERT or a "
                f"GPT; from Python, clearhead.watch records the others"
            )
        encoded = self.encode(text, Tokenizer.load(folder), self.model.config.max_len)
        self.given: dict[str, Given] = {}
        for place, module in self.model.named_modules():
            if isinstance(module, MultiHeadAttention):
                module.register_forward_pre_hook(self.keeping(place), with_kwargs=True)
        with watch(self.model) as seen, torch.no_grad():
            self.model(torch.tensor([encoded.ids]))
        require_place(seen, layer, head)
        words, special = encoded.pieces, encoded.special
        place = pick_query(words, special) if query is None else find_word(words, query)
        self.view: View = look(seen, words, special, query=place, layer=layer, head=head)

    def encode(self, text: str, tokenizer: Tokenizer, max_len: int) -> Encoded:
        """Return the pieces of the text, as many as the model can read."""
        encoded = tokenizer.encode(text, max_len=max_len)
        if encoded.truncated:
            note(f"the model reads {max_len} pieces at once: the last {encoded.truncated:,} are left out")
        return encoded

    def keeping(self, place: str) -> Hook:
        """Return a hook that keeps what the layer at `place` is given, its one text without the batch."""

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            self.given[place] = inputs[0][0], named["mask"]

        return keep

    @property
    def layer(self) -> tuple[MultiHeadAttention, Given]:
        """Return the layer that is seen, and what it was given."""
        name = next(one.name for one in self.view.seen.layers if one.index == self.view.layer)
        attention = self.model.get_submodule(name)
        assert isinstance(attention, MultiHeadAttention)
        return attention, self.given[name]


def require_place(seen: Recording, layer: int | None, head: int | None) -> None:
    """Raise InputError where there is no such layer or head."""
    n_layers, n_heads = len(seen.layers), seen.layers[0].n_heads
    for what, asked, n in (("layer", layer, n_layers), ("head", head, n_heads)):
        if asked is not None and not 0 <= asked < n:
            raise InputError(f"there is no {what} {asked}: this model has {n}, counted from 0")
