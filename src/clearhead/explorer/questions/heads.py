"""Questions about heads and single links: what each head does, and which weights are the largest."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clearhead.explorer import blocks
from clearhead.explorer.blocks import MAX_EXACT_WEIGHTS
from clearhead.explorer.questions.place import OF_HEAD, OF_SCENE, QUERY, place
from clearhead.explorer.scene import Scene
from clearhead.explorer.table import Answer, Parameter, Question
from clearhead.seeing import Recording
from clearhead.seeing.maps import pyramid
from clearhead.seeing.maps.habits import Habit

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

N_SAMPLED = 256  # queries that statistics of a long text are estimated from
MAX_COUNT = 1_000  # links in one answer


def heads(exploration: "Exploration", scene: str | None, call: int, batch: int) -> Answer:
    """Answer `heads`."""
    habits, n_sampled = known_habits(exploration, scene, call, batch)
    effects = exploration.kept.get((exploration.scene(scene)[0], "effects"), {})
    rows = [asdict(habit) | {"effect": effects.get((habit.layer, habit.head))} for habit in habits]
    return Answer({"heads": rows, "exact": n_sampled is None, "sampled": n_sampled})


def known_habits(
    exploration: "Exploration", scene: str | None, call: int, batch: int
) -> tuple[list[Habit], int | None]:
    """Return what every head does, and from how many sampled queries this was estimated; None if from all."""
    name, found = exploration.scene(scene)
    key = (name, call, batch, "habits")
    if key not in exploration.kept:
        seen, n_sampled = quick(found, call, batch)
        layers = [layer for layer in seen.numbers if seen.call(layer).batch > batch]
        exploration.kept[key] = (_habits(found, seen, layers, batch), n_sampled)
    known: tuple[list[Habit], int | None] = exploration.kept[key]
    return known


def quick(scene: Scene, call: int, batch: int) -> tuple[Recording, int | None]:
    """Return the recording of one call a layer; of a long text only some of its queries, and how many."""
    found, n_sampled = Recording(), None
    found.names, found.settle = scene.seen.names, scene.seen.settle
    for layer in scene.seen.numbers:
        calls = scene.seen.calls[layer]
        if not -len(calls) <= call < len(calls):
            continue
        one = scene.seen.call(layer, call)
        if one.n_queries * one.n_keys > MAX_EXACT_WEIGHTS and batch < one.batch:
            counted = scene.seen.counted(one, batch, layer)
            rows = blocks.spread_rows(one, pyramid.edges(one.n_all, N_SAMPLED), 1, counted)
            one, n_sampled = blocks.subset(one, rows), len(rows)
        found.calls[layer] = [one]
    return found, n_sampled


def _habits(scene: Scene, seen: Recording, layers: list[int], batch: int) -> list[Habit]:
    """Return what the heads of some layers do; the marks of each are those of its own keys."""
    found: list[Habit] = []
    for layer in layers:
        part = Recording()
        part.names, part.calls, part.settle = seen.names, {layer: seen.calls[layer]}, seen.settle
        one = part.call(layer)
        axis = scene.axes[scene.axes_of(layer, one)[1]]
        marks = [i for i in range(1, min(len(axis), one.n_keys)) if axis.special[i]] if axis.picture is None else []
        tokens = scene.tokens
        if tokens is not None and (len(tokens) != one.positions.end or not part.of_one_text(layer, one)):
            tokens = None
        found += part.heads(separators=marks, tokens=tokens, batch=batch)
    return found


def links(
    exploration: "Exploration",
    scene: str | None,
    call: int,
    batch: int,
    layer: int,
    head: int,
    query: int,
    coverage: float,
) -> Answer:
    """Answer `links`."""
    at = place(exploration, scene, layer, call, batch, head)
    at.require_query(query)
    found = at.scene.seen.links(layer, head, query, coverage, batch=batch, call=call)
    shown = [{"key": link.key, "weight": link.weight} for link in found[:MAX_COUNT]]
    carried = sum(link["weight"] for link in shown)
    return Answer({"links": shown, "carried": carried, "left_out": len(found) - len(shown)})


def strongest(
    exploration: "Exploration",
    scene: str | None,
    call: int,
    batch: int,
    layer: int | None,
    head: int | None,
    count: int,
    apart: int,
    without: str,
) -> Answer:
    """Answer `strongest`."""
    _, found = exploration.scene(scene)
    if layer is not None:
        place(exploration, scene, layer, call, batch, head)
    seen, n_sampled = quick(found, call, batch)
    keys = [int(key) for key in without.split(",") if key]
    options: dict[str, Any] = {"apart": apart, "without": keys, "batch": batch}
    rows = seen.strongest(count, layer=layer, head=head, **options)
    return Answer({"links": [asdict(link) for link in rows], "exact": n_sampled is None, "sampled": n_sampled})


QUESTIONS = (
    Question("heads", "What every head does, in numbers and with a name where one fits.", heads, OF_SCENE),
    Question(
        "links",
        "The fewest links of a query that carry a share of its weight, heaviest first.",
        links,
        {
            **OF_HEAD,
            "query": QUERY,
            "coverage": Parameter("number", "the share of the weight that the links carry", 0.7, low=0, high=1),
        },
    ),
    Question(
        "strongest",
        "The largest weights, largest first.",
        strongest,
        {
            **OF_SCENE,
            "layer": Parameter("integer", "of this layer alone", low=0, high=2**31 - 1),
            "head": Parameter("integer", "of this head alone", low=0, high=2**31 - 1),
            "count": Parameter("integer", "how many", 20, low=1, high=MAX_COUNT),
            "apart": Parameter("integer", "leave out links to keys nearer than this", 0, low=0, high=2**31 - 1),
            "without": Parameter(
                "string",
                "keys to leave out, numbers with commas between them",
                "",
                high=400,
                pattern="^([0-9]+(,[0-9]+)*)?$",
            ),
        },
    ),
)
