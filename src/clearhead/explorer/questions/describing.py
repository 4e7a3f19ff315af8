"""The question `meta`: what a scene is of, what its layers are, and the strongest thing that it has to say."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from clearhead.errors import InputError
from clearhead.explorer.axes import Axis
from clearhead.explorer.blocks import FLOOR
from clearhead.explorer.questions.heads import known_habits
from clearhead.explorer.questions.maps import TILE
from clearhead.explorer.questions.place import OF_SCENE, QUERY
from clearhead.explorer.scene import Scene
from clearhead.explorer.sharing import commands
from clearhead.explorer.table import Answer, Parameter, Question
from clearhead.explorer.view import LONG, PLACES, others, pick_query, spoken
from clearhead.seeing.maps import formula

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

VERSION = 1
MAX_LISTED = 10_000  # calls and texts that are listed


def meta(exploration: "Exploration", scene: str | None, call: int, batch: int) -> Answer:
    """Answer `meta`."""
    name, found = exploration.scene(scene)
    seen = found.seen
    layers = _layers(found, call, batch)  # before the axes: it may add some
    runner = exploration.runner
    again = runner is not None and runner.can_run(found)
    first = seen.call(seen.numbers[0], -1)
    return Answer(
        {
            "version": VERSION,
            "id": name,
            "title": found.title,
            "model": found.origin.model,
            "can": {
                "run": runner is not None and bool(runner.names),
                "edit": again,
                "effect": again,
                "temperature": again,
                "why_values": first.v is not None,
                "profile": False,
                "generate": again and runner is not None and runner.can_generate(found),
                "image": runner is not None and runner.reads_pictures,
            },
            "models": [] if runner is None else list(runner.names),
            "scenes": [{"id": each, "title": other.title} for each, other in exploration.scenes.items()],
            "commands": commands(found),
            "axes": [axis.to_json() for axis in found.axes],
            "layers": layers,
            "calls": _calls(found),
            "batch": [{"index": i, "label": f"text {i}"} for i in range(min(first.batch, MAX_LISTED))],
            "answer": found.answer,
            "strongest": strongest_thing(exploration, name, found, call, batch),
            "notes": [*found.notes, *seen.notes],
            "unseen": [vars(unseen) for unseen in seen.unseen],
            "tile": TILE,
            "floor": FLOOR,
            "edits": [dict(edit) for edit in found.edits],
        }
    )


def _layers(scene: Scene, call: int, batch: int) -> list[dict[str, Any]]:
    """Return the layers in order; those whose attention was not seen keep their place, and say why."""
    seen, counts = scene.seen, {"": 0, "encoder": 0, "decoder": 0, "cross": 0}
    found: list[dict[str, Any]] = []
    for layer in seen.layers:
        calls, part = seen.calls[layer.index], scene.part(layer.index)
        number, counts[part] = counts[part], counts[part] + 1
        there = -len(calls) <= call < len(calls)
        one = seen.call(layer.index, call if there else -1)
        query_axis, key_axis = scene.axes_of(layer.index, one)
        reach, since = one.rule.reach, one.rule.since
        ruled = reach is not None or since is not None
        title = {"": f"{layer.index}", "cross": f"decoder {number} cross"}.get(part, f"{part} {number}")
        empty = None if there and batch < one.batch else "this layer was not called so often"
        found.append(
            {
                "index": layer.index,
                "name": layer.name,
                "title": title,
                "part": part,
                "query_axis": query_axis,
                "key_axis": key_axis,
                "heads": list(one.heads),
                "n_queries": one.n_all,
                "n_keys": one.n_keys,
                "first_query": scene.first_query(layer.index, one),
                "calls": len(calls),
                "batch": one.batch,
                "empty": empty,
                "hidden": {"last_offset": reach, "first_offset": since} if ruled else None,
            }
        )
    order = seen.account.ran
    for unseen in seen.unseen:
        if any(unseen.name == layer["name"] for layer in found):
            continue  # seen in other forwards
        blank: dict[str, Any] = dict.fromkeys(found[0]) | {
            "heads": [],
            "calls": 0,
            "batch": 0,
            "n_queries": 0,
            "n_keys": 0,
        }
        blank |= {"name": unseen.name, "title": unseen.name or "elsewhere", "part": ""}
        blank |= {"heads": [], "empty": unseen.reason}
        own = order.get(unseen.name, len(order))
        later = (i for i, layer in enumerate(found) if order.get(layer["name"].partition("#")[0], -1) > own)
        found.insert(next(later, len(found)), blank)
    return found


def _calls(scene: Scene) -> list[dict[str, Any]]:
    """Return the calls of the first layer, with the token that each of a generation wrote or read."""
    calls = scene.seen.calls[scene.seen.numbers[0]]
    found = []
    for number, one in enumerate(calls[:MAX_LISTED]):
        first = scene.first_query(scene.seen.numbers[0], one)
        axis = scene.axes[scene.axes_of(scene.seen.numbers[0], one)[0]]
        token = repr(axis.tokens[first]) if one.n_all == 1 and first < len(axis) else ""
        label = "whole" if len(calls) == 1 else f"token {number} {token}".strip() if number else "prompt"
        found.append({"call": number, "label": label, "first": first, "n_queries": one.n_all, "n_keys": one.n_keys})
    return found


def strongest_thing(
    exploration: "Exploration", name: str, scene: Scene, call: int, batch: int, query: int | None = None
) -> dict[str, Any] | None:
    """Return the head that looks hardest from one word at another, and a sentence that says so.

    Args:
        exploration: Keeps what every head does, where that took long.
        name: The id of the scene.
        scene: The scene.
        call: Which of each layer's calls.
        batch: Which text of the batch.
        query: The word, as an index into the queries of the call; the one that `pinned_query` names where None.
    """
    seen = scene.seen
    main = [layer for layer in seen.numbers if scene.part(layer) == "cross"] or list(seen.numbers)
    main = [layer for layer in main if -len(seen.calls[layer]) <= call < len(seen.calls[layer])]
    main = [layer for layer in main if batch < seen.call(layer, call).batch]
    if not main:
        return None
    one = seen.call(main[0], call)
    queries, keys = (scene.axes[i] for i in scene.axes_of(main[0], one))
    first = scene.first_query(main[0], one)
    recorded = one.rows.tolist()
    if query is not None and query not in recorded:
        raise InputError(
            f"query {query} is not recorded: expected one of {len(recorded)}, {recorded[0]} to {recorded[-1]}"
        )
    pinned = first + query if query is not None else pinned_query(queries, first, [first + i for i in recorded])
    if queries is keys:
        targets = others(queries.marked, queries.special, pinned) if queries.name != "keys" else []
    else:
        targets = spoken(keys.marked, keys.special)
    by_place = set()
    if queries is keys and one.n_keys >= LONG:
        habits, _ = known_habits(exploration, name, call, batch)
        by_place = {(habit.layer, habit.head) for habit in habits if habit.kind in PLACES}
    best = _best(scene, main, pinned, targets, by_place, call, batch)
    if best is None:
        return None
    _, weight, layer, head, key = best
    shift = scene.first_query(layer, seen.call(layer, call))
    return {
        "layer": layer,
        "head": head,
        "query": pinned - shift,
        "key": key,
        "weight": weight,
        "sentence": f"Layer {layer}, head {head}: {queries.name_of(pinned)} gives {100 * weight:.0f} % of its "
        f"attention to {keys.name_of(key)}.",
    }


def _best(
    scene: Scene,
    layers: Sequence[int],
    pinned: int,
    targets: Sequence[int],
    by_place: Collection[tuple[int, int]],
    call: int,
    batch: int,
) -> tuple[bool, float, int, int, int] | None:
    """Return the heaviest link from a position to one of the targets: no place head, weight, layer, head, key.

    Heads in `by_place`, which look at a place whatever stands there, come last.
    """
    best: tuple[bool, float, int, int, int] | None = None
    for layer in layers:
        one = scene.seen.call(layer, call)
        shift, row = scene.first_query(layer, one), pinned - scene.first_query(layer, one)
        rows = (one.rows == row).nonzero()[:, 0]
        if not len(rows):
            continue
        places = [i for i in targets if i < one.n_keys and i != row + shift] or list(range(one.n_keys))
        every, cols = (torch.tensor(at, device=one.q.device) for at in (range(len(one.heads)), places))
        weights, where = formula.weights(one, batch, every, rows[:1], cols)[:, 0].max(1)
        for i, head in enumerate(one.heads):
            ranked = ((layer, head) not in by_place, float(weights[i]), layer, head, places[int(where[i])])
            best = ranked if best is None or ranked[:2] > best[:2] else best
    return best


def hardest(exploration: "Exploration", scene: str | None, call: int, batch: int, query: int) -> Answer:
    """Answer `hardest`."""
    name, found = exploration.scene(scene)
    return Answer({"strongest": strongest_thing(exploration, name, found, call, batch, query)})


def pinned_query(axis: Axis, first: int, recorded: list[int]) -> int:
    """Return the position to look from where nobody named one: the last content word, the picture as a whole."""
    if axis.picture is not None:
        area = axis.picture
        found = 0 if area.first else (area.rows // 2) * area.cols + area.cols // 2
    elif axis.name == "keys":
        found = recorded[-1]
    else:
        stop = recorded[-1] + 1
        found = pick_query(axis.marked[:stop], axis.special[:stop])
    return found if found in recorded else recorded[-1]


def image(exploration: "Exploration", scene: str | None, id: str) -> Answer:
    """Answer `image`: the picture of a scene."""
    _, found = exploration.scene(scene)
    if found.picture is None:
        raise InputError("this scene is of no picture")
    return Answer(
        {"width": found.picture.width, "height": found.picture.height}, found.picture.data, found.picture.media_type
    )


QUESTIONS = (
    Question("meta", "What a scene is of, what its layers are, and the strongest thing that it says.", meta, OF_SCENE),
    Question(
        "hardest",
        "The head that looks hardest from one word at another: what `meta` says, for a word of one's choice.",
        hardest,
        {**OF_SCENE, "query": QUERY},
    ),
    Question(
        "image",
        "The picture of a scene, as PNG or JPEG.",
        image,
        {"scene": OF_SCENE["scene"], "id": Parameter("string", "the name that the axis gives it", "picture", high=40)},
        gives="bytes",
    ),
)
