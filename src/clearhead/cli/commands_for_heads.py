"""What a person can type to find out what heads do: `effect` takes them away, `profile` counts over a corpus.

Next: `effects.py` and `profiling.py`, which do it.
"""

from tyro.conf import Positional

from clearhead.cli.arguments import Atlas, Corpus, Count, Flag, Length, Model, Place, Taken, Text, Word


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
