"""`clearhead profile`: hand a model and a corpus to the atlas and say where the table is."""

from collections.abc import Sequence
from pathlib import Path

from clearhead.cli.arguments import at_least_1
from clearhead.cli.inputs import STDIN, require_readable
from clearhead.cli.output import answer


def run(model: str, corpus: Sequence[Path], *, out: Path | None, limit: int | None, parquet: bool) -> None:
    """Count; what a person sees meanwhile is on stderr, the folder is on stdout."""
    at_least_1(limit=limit)
    corpus = corpus or (STDIN,)
    for path in corpus:
        require_readable(path)
    from clearhead.atlas.shards import World
    from clearhead.atlas.survey import profile

    folder = profile(model, corpus, out or Path("profiles") / Path(model).name, limit=limit, parquet=parquet)
    if World.here().rank == 0:
        answer(str(folder))
