"""`profile`: what every head of a model does over a corpus, text by text, stopped and gone on with at any moment.

Texts are streamed, one a line, and watched one at a time, so that no padding is counted and memory is that of the
longest. A text longer than the model reads is read in windows. Next: `picture.py` draws the table.
"""

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clearhead import __version__
from clearhead.atlas.picture import draw
from clearhead.atlas.shards import State, World, require_same
from clearhead.atlas.tally import Tally
from clearhead.checkpoints import find, load
from clearhead.checkpoints.files import to_disk
from clearhead.data.text import read_texts
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError, Interrupted, MissingExtra, a, counted
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.models.vit import ViT
from clearhead.seeing import watch
from clearhead.training.run import stop_signals
from clearhead.training.store import write

SAVE_EVERY = 20.0  # seconds: what a killed process has to count again


def profile(
    name: str, corpus: Sequence[Path | str], out: Path | str, *, limit: int | None = None, parquet: bool = False
) -> Path:
    """Count what every head of the model called `name` does over the texts of `corpus`, and return the folder `out`.

    It holds `profile.json`, a row a head; `profile.svg`, the same as a picture; `profile.parquet`, if asked for; and a
    state file a process, by which the same call goes on after it was stopped. `limit` reads that many texts at most.
    Under torchrun each process takes its share; the first one writes.

    Statistics are those of `seeing.Habit`: means over all queries of the corpus that are no padding and have
    more than one key to look at.

    InputError for a model that does not read one text, for a folder that holds something else, for texts that cannot be
    read; MissingExtra for a Parquet table without pyarrow; Interrupted when a signal stopped it, after all that was
    counted was saved.
    """
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra("a Parquet table is written by pyarrow, which is not installed: pip install pyarrow")
    out, source = Path(out), find(name)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: expected a folder for the profile, or a name for a new one")
    with World.joined() as world:
        if world.size > 1 and "-" in map(str, corpus):
            raise InputError("standard input is one stream, and every process has to read the whole corpus: give files")
        model = load(source).eval().to(world.device)
        longest, vocab_size, tokenizer = *_sizes(model, name), Tokenizer.load(source)
        state = State(out, world, {"model": _mark(source), "corpus": [_told(path) for path in corpus], "limit": limit})
        require_same(world.gather(state.identity))
        kept = state.read()
        tally = Tally.from_json(kept["tally"]) if kept else Tally()
        done, saved = kept["read"] if kept else 0, time.monotonic()
        with stop_signals() as signals, torch.no_grad(), _progress(tally.texts, world) as show:
            for number, text in enumerate(read_texts(corpus)):
                if number == limit:
                    break
                if number < done or number % world.size != world.rank:
                    continue
                for window in tokenizer.windows(text, longest):
                    tokens = torch.tensor(window.require_known(vocab_size).ids, device=world.device)
                    with watch(model) as seen:
                        model(tokens[None])
                    tally.add(seen, tokens, [i for i, special in enumerate(window.special) if special and i])
                tally.texts += 1
                show(tally.texts)
                if signals or time.monotonic() - saved > SAVE_EVERY:
                    state.write(number + 1, tally.to_json())
                    saved = time.monotonic()
                if signals:
                    raise Interrupted(
                        f"interrupted after {counted(tally.texts, 'text')}; what was counted is in {state.path}. "
                        f"To go on, give the same command again",
                        signals[0],
                    )
                done = number + 1
            state.write(done, tally.to_json())
        _finish(world, tally, {"model": name, "corpus": [str(path) for path in corpus]}, out, parquet)
    return out


def _finish(world: World, tally: Tally, said: dict[str, Any], out: Path, parquet: bool) -> None:
    """Bring together what all processes counted; the first one writes it."""
    shares = [Tally.from_json(share) for share in world.gather(tally.to_json())]
    if world.rank:
        return
    whole = Tally()
    for share in shares:
        whole.merge(share)
    if not whole.heads:
        raise InputError("the corpus holds no text of two tokens or more: expected one text a line")
    facts = {**said, "clearhead": __version__, "texts": whole.texts, "tokens": whole.tokens}
    table = whole.table()
    write(out / "profile.json", json.dumps({**facts, "heads": table}, indent=1) + "\n")
    about = f"{counted(whole.texts, 'text')}, {whole.tokens:,} tokens"
    write(out / "profile.svg", draw(table, said["model"], about))
    if parquet:
        _write_parquet(out / "profile.parquet", table, facts)


def _write_parquet(path: Path, table: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the rows of `profile.json` as a table, and what stands beside them as its metadata."""
    import pyarrow
    import pyarrow.parquet

    beside = path.with_name(path.name + ".partial")
    columns = pyarrow.Table.from_pylist(table).replace_schema_metadata({"clearhead": json.dumps(facts)})
    pyarrow.parquet.write_table(columns, beside)
    to_disk(beside)
    beside.rename(path)


def _sizes(model: nn.Module, name: str) -> tuple[int, int]:
    """Return how many tokens the model reads at once, and how many it knows; InputError unless it reads one text."""
    config = getattr(model, "config", None)
    longest = getattr(config, "max_len", None)
    if isinstance(model, EncoderDecoder) or any(isinstance(module, ViT) for module in model.modules()) or not longest:
        raise InputError(
            f"{name} is {a(type(model).__name__)}: a profile is of a model that reads one text, such as a BERT or a "
            f"GPT; from Python, clearhead.watch records the others"
        )
    return int(longest), int(getattr(config, "vocab_size", 0))


def _mark(source: Path) -> str:
    """Return what tells a checkpoint from another, its tokenizer with it: what is in its files."""
    found = hashlib.sha256()
    for path in sorted(path for path in source.iterdir() if path.suffix in (".json", ".txt", ".safetensors")):
        found.update(path.name.encode() + _digest(path))
    return found.hexdigest()[:16]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _told(path: Path | str) -> list[Any]:
    """Return what tells a file from another: its name and what is in it."""
    if str(path) == "-":
        return ["-", None]
    try:
        return [Path(path).name, _digest(Path(path)).hex()[:16]]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _progress(done: int, world: World) -> Iterator[Callable[[int], None]]:
    """Show how many texts were read, or the first of several processes has read, to a person at a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    share = f" by process 0 of {world.size}" if world.size > 1 else ""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = world.rank > 0 or not console.file.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(counted(done, "text") + share, total=None)
        yield lambda texts: bar.update(task, description=counted(texts, "text") + share)
