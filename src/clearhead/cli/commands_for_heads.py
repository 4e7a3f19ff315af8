"""What a person can type to find out what heads do: `derive` explains one, `see` and `explore` show all, `effect` takes
them away, `profile` counts over a corpus.

Next: `watching.py`, `exploring.py`, `effects.py` and `profiling.py`, which do it.
"""

from tyro.conf import Positional

from clearhead.cli.arguments import (
    Atlas,
    Corpus,
    Count,
    Files,
    Flag,
    Length,
    Model,
    Page,
    Pixels,
    Place,
    Port,
    Taken,
    Target,
    Text,
    Texts,
    View,
    Watched,
    Word,
)
from clearhead.cli.output import refuse


def derive(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    query: Word = None,
    layer: Place = None,
    head: Place = None,
    target: Target = None,
    model: Watched = None,
    json: Flag = False,
    source: Flag = False,
    max_pixels: Pixels = None,
) -> None:
    """Derive attention in eight steps, with the numbers of this text.

    Args:
        texts: One argument is one text, or one picture.
        file: Read these, one text a line, or one picture's name; - is standard input.
        query: The word that looks around; of a picture a patch, by row,column or number.
        layer: The layer, counted from 0.
        head: The head, counted from 0.
        target: What an encoder-decoder writes while it looks at the text.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print {"text", "tokens", "layer", "head", "query", "steps"} for every text, one object a line.
        source: Show the lines of clearhead that computed each step.
        max_pixels: Read pictures of at most N pixels.
    """
    from clearhead.cli import watching

    asked = {"query": query, "layer": layer, "head": head, "target": target}
    watching.derive(texts, file, asked=asked, model=model, as_json=json, source=source, max_pixels=max_pixels)


def see(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    query: Word = None,
    layer: Place = None,
    head: Place = None,
    target: Target = None,
    model: Watched = None,
    json: Flag = False,
    html: Page = None,
    max_pixels: Pixels = None,
) -> None:
    """Show every head as a small map, and what a word looks at.

    Args:
        texts: One argument is one text, one picture, or one recording (.seen).
        file: Read these, one text a line, or one picture's name; - is standard input.
        query: The word that looks around; of a picture a patch, by row,column or number.
        layer: The layer to look at closely, counted from 0.
        head: The head to look at closely, counted from 0.
        target: What an encoder-decoder writes while it looks at the text.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print one object a line instead.
        html: Write the explorer of one text or picture into one HTML file, which needs nothing to be opened.
        max_pixels: Read pictures of at most N pixels.
    """
    if html is not None:
        if max_pixels is not None:
            refuse("--html takes pictures of the usual size: give --max-pixels without it")
        from clearhead.cli import exploring

        return exploring.write_page(
            texts, file, html, query=query, layer=layer, head=head, target=target, model=model, as_json=json
        )
    from clearhead.cli import watching

    asked = {"query": query, "layer": layer, "head": head, "target": target}
    watching.see(texts, file, asked=asked, model=model, as_json=json, max_pixels=max_pixels)


def explore(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    target: Target = None,
    model: Watched = None,
    view: View = "",
    port: Port = None,
    no_open: Flag = False,
) -> None:
    """Explore every head in a page of the browser, until Ctrl-C.

    Args:
        texts: One argument is one text, one picture, or one recording (.seen).
        file: Read each of these as one text.
        target: What an encoder-decoder writes while it looks at the text.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        view: Begin where "Copy as command" or "Copy the view" of the page was.
        port: Serve on this port of this machine.
        no_open: Print the address and open no browser.
    """
    from clearhead.cli import exploring

    exploring.run(texts, file, target=target, model=model, view=view, port=port, opens=not no_open)


def effect(
    text: Positional[Text],
    /,
    *,
    over: Taken = "heads",
    query: Word = None,
    layer: Place = None,
    head: Place = None,
    model: Model = "sentiment",
    top: Length = 10,
    json: Flag = False,
) -> None:
    """Take away one head, layer, link or token after the other, and show what the answer loses.

    Args:
        text: The text to read.
        over: What to take away. Links are those of one word in one head; a token is hidden from all others.
        query: The word whose links are cut.
        layer: The layer whose links are cut, counted from 0.
        head: The head whose links are cut, counted from 0.
        model: A classifier of texts or a decoder: a shipped default, a checkpoint folder or a hub name.
        top: Show the N that move the answer most.
        json: Print one object with all of them: {"text", "tokens", "over", "target", "before", "rows", "notes"}.
    """
    from clearhead.cli import effects

    effects.run(text, over=over, query=query, layer=layer, head=head, model=model, top=top, as_json=json)


def profile(
    model: Positional[Model],
    corpus: Positional[Corpus] = (),
    /,
    *,
    out: Atlas = None,
    limit: Count = None,
    parquet: Flag = False,
) -> None:
    """Count what every head does over a corpus; Ctrl-C saves, the same command goes on.

    Args:
        model: A model that reads one text: a shipped default (clearhead models), a checkpoint folder or a hub name.
        corpus: Files with one text a line; - is standard input.
        out: Where profile.json and profile.svg are written, and what was counted so far.
        limit: Read N texts at most.
        parquet: Write profile.parquet, too; needs pyarrow.
    """
    from clearhead.cli import profiling

    profiling.run(model, corpus, out=out, limit=limit, parquet=parquet)
