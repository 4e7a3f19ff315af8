"""`clearhead see`: every head as a small map, and what one word looks at."""

from clearhead.cli.output import console, dump


def run(text: str, *, query: str | None, layer: int | None, head: int | None, model: str, as_json: bool) -> None:
    """Read the text while the model is watched, choose what was left open, and print."""
    from clearhead.cli.reading import Reading
    from clearhead.explorer.view import to_json

    view = Reading(text, model, query=query, layer=layer, head=head).view
    if as_json:
        print(dump({"text": text, **to_json(view)}))
        return

    from clearhead.explorer.terminal import show

    show(view, console())
