"""`clearhead effect`: what the answer to one text loses without a head, a layer, a link or a token."""

from collections.abc import Sequence
from typing import Any

from clearhead.cli.arguments import at_least_1
from clearhead.cli.inputs import is_picture, note_file_name
from clearhead.cli.output import answer, dump, note, one_line, refuse, require_text, say
from clearhead.errors import InputError


def run(
    text: str,
    *,
    over: str,
    query: str | None,
    layer: int | None,
    head: int | None,
    model: str,
    top: int,
    as_json: bool,
) -> None:
    """Read the text, take one thing away after the other, and print what moves the answer most."""
    require_text(text)
    if is_picture(text):
        raise InputError(f"{text} is a picture: an effect is of a text; `clearhead see` shows where a ViT looks")
    note_file_name(text, f'clearhead effect "$(cat {text})"')
    at_least_1(top=top)
    places = {"query": query, "layer": layer, "head": head}
    if over != "links" and (given := [f"--{n}" for n, x in places.items() if x is not None]):
        refuse(f"{given[0]} says whose links are cut: it needs --over links, got --over {over}")

    import torch

    from clearhead.cli.opening import open_for
    from clearhead.data.tokenizer import Tokenizer
    from clearhead.derivation import find_word
    from clearhead.seeing import effect, watch

    folder, reader = open_for("effect", model)
    config: Any = reader.config
    longest = getattr(config, "context_len", config.max_len)
    encoded = Tokenizer.load(folder).encode(text, max_len=longest).require_known(config.vocab_size)
    if encoded.truncated:
        note(f"the model reads {longest} pieces at once: the last {encoded.truncated:,} are left out")
    tokens, words = torch.tensor([encoded.ids]), encoded.pieces
    where: dict[str, int | None] = {}
    if over == "links":
        from clearhead.cli.reading import Asked, require_place
        from clearhead.explorer.view import look, pick_query

        with watch(reader) as seen, torch.no_grad():
            reader(tokens)
        require_place(seen, Asked(query, layer, head))
        place = pick_query(words, encoded.special) if query is None else find_word(words, query)
        view = look(seen, words, encoded.special, query=place, layer=layer, head=head)
        where = {"layer": view.layer, "head": view.head, "query": place}
    found = effect(reader, tokens, over=over, **where)  # type: ignore[arg-type]  # a Literal, and ints
    names = getattr(config, "labels", ())
    fields = found.to_json()
    if not names:
        with torch.no_grad():
            best = int(reader(tokens)[0, -1].argmax())
        fields["target"] = f"logit of {Tokenizer.load(folder).decode([best])!r} as the next token"
    if as_json:
        print(dump({"text": text, "tokens": words, **fields}))
    else:
        show(fields, words, top)


def show(fields: dict[str, Any], words: Sequence[str], top: int) -> None:
    """Print the rows that move the answer most."""
    rows, before, over = fields["rows"], fields["before"], fields["over"]
    most = "one that moves" if top == 1 else f"{top} that move"
    shown = f", the {most} it most" if len(rows) > top else ""
    what = {"heads": "head", "layers": "layer's attention", "links": "link", "tokens": "token"}[over]
    say(f"{one_line(fields['target'])}: {before:.3f}. Without one {what} ({len(rows)} tried{shown}):")
    for row in rows[:top]:
        answer(f"  {row['after']:8.3f}  {row['effect']:+8.3f}  {said(row, words)}")
    for remark in fields["notes"]:
        note(remark)
    if over != "tokens":
        say("One at a time: where others stand in for what is missing, little moves; --over tokens hides from all.")


def said(row: dict[str, Any], words: Sequence[str]) -> str:
    """Return what was taken away, in words."""
    if "weight" in row:
        pair = f"{words[row['query']]} -> {words[row['key']]}"
        return f"{one_line(pair)}  weight {row['weight']:.3f}  layer {row['layer']} head {row['head']}"
    if "key" in row:
        return f"{one_line(words[row['key']])}  (place {row['key']})"
    return " ".join(f"{name} {row[name]}" for name in ("layer", "head") if name in row)
