"""`clearhead derive`: attention in eight steps, on a layer of a model that has just read the text."""

from clearhead.cli.output import console, dump


def run(
    text: str, *, query: str | None, layer: int | None, head: int | None, model: str, as_json: bool, source: bool
) -> None:
    """Read the text, choose what was left open, derive, and print."""
    from clearhead.cli.reading import Reading
    from clearhead.derivation import derive
    from clearhead.derivation.words import label

    reading = Reading(text, model, query=query, layer=layer, head=head)
    view = reading.view
    attention, (x, mask) = reading.layer
    derivation = derive(attention, x, view.words, query=view.query, head=view.head, mask=mask)
    if as_json:
        found = derivation.to_json()
        if not source:
            for step in found["steps"]:
                del step["source"]
        print(dump({"text": text, "tokens": found.pop("tokens"), "layer": view.layer, **found}))
        return

    from clearhead.explorer.derivation_view import show

    heading = f"layer {view.layer}, head {view.head}"
    if layer is None or head is None:
        heading += f", which looks hardest at another word, {label(view.words, view.strongest[0].key)}"
    show(derivation, console(), source=source, heading=heading)
