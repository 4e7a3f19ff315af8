"""Questions that run a model: a new scene, with edits and with tokens that it writes, and what removals do.

Each is a stream of events, the last of which is "done" or "error".
"""

from typing import TYPE_CHECKING, Any

from clearhead.errors import InputError
from clearhead.explorer.edits import MAX_EDITS, MAX_POSITION, checked, editing
from clearhead.explorer.jobs import Events, Report, stoppable
from clearhead.explorer.runner import Runner, Writing
from clearhead.explorer.table import Answer, Parameter, Question
from clearhead.seeing import effect as removals

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

MAX_LETTERS = 200_000
MAX_NEW_TOKENS = 1_000
MAX_IMAGE_BYTES = 20_000_000
GENERATE = {
    "max_new_tokens": Parameter("integer", "how many tokens to write at most", 50, low=1, high=MAX_NEW_TOKENS),
    "temperature": Parameter(
        "number", "draw tokens at this temperature; null takes the likeliest", low=0, high=100, nullable=True
    ),
    "seed": Parameter("integer", "draw again what was drawn with this number", 0, low=0, high=2**31 - 1),
}


def run(
    exploration: "Exploration",
    scene: str | None,
    model: str | None,
    text: str | None,
    image: str | None,
    target: str | None,
    generate: dict[str, Any] | None,
    edits: list[Any] | None,
) -> Events:
    """Answer `run`: the events of a model that reads, writes and becomes a scene."""
    runner = _runner(exploration)
    asked = checked(edits or [])
    writing = None if generate is None else _writing(generate)
    given: Any = text
    if image is not None:
        if image not in exploration.images:
            raise InputError(f"there is no picture {image[:40]!r}: send it first")
        given = exploration.images[image]
    if (given is None) == (scene is None) or (text is not None and image is not None):
        raise InputError("run needs one of text, image, or the scene that is to be run again")
    if given is not None and model not in runner.names:
        raise InputError(f"model expects one of {', '.join(runner.names)}, got {repr(model)[:80]}")

    def work(report: Report) -> None:
        if given is None:
            _, old = exploration.scene(scene)
            new = runner.again(old, edits=asked, writing=writing, report=report)
        else:
            assert model is not None
            title = "picture" if image is not None else ""
            options: dict[str, Any] = {"target": target, "title": title, "edits": asked, "writing": writing}
            new = runner.read(model, given, report=report, **options)
        name = exploration.add(new)
        report("done", scene=name, meta=exploration.ask("meta", scene=name).meta)

    return Events(work)


def effect(
    exploration: "Exploration", scene: str | None, over: str, layer: int | None, head: int | None, query: int | None
) -> Events:
    """Answer `effect`: one thing is taken away after the other, and what that does to the answer."""
    runner = _runner(exploration)
    name, found = exploration.scene(scene)
    if not runner.can_run(found) or found.prepared is None or found.model is None:
        raise InputError("effects need the model that made this scene, and it is not at hand")
    inputs, model = list(found.prepared.inputs), found.model

    def work(report: Report) -> None:
        with stoppable(model, report, f"without one of the {over}"), editing(model, found.edits):
            rows = removals(model, inputs, over=over, layer=layer, head=head, query=query)  # type: ignore[arg-type]
        said = rows.to_json()
        if over == "heads":
            known = {(row["layer"], row["head"]): row["effect"] for row in said["rows"]}
            exploration.kept[(name, "effects")] = known
        report("done", **said)

    return Events(work)


def receive_image(exploration: "Exploration", data: bytes) -> Answer:
    """Answer `image` when it is sent: a picture that `run` can be told to read."""
    if not data:
        raise InputError("the picture is empty: expected the bytes of a PNG, a JPEG or a WebP file")
    return Answer(exploration.add_image(data))


def _runner(exploration: "Exploration") -> Runner:
    if exploration.runner is None:
        raise InputError("nothing can be run here: these are recordings, and their models are not at hand")
    return exploration.runner


def _writing(given: dict[str, Any]) -> Writing:
    question = Question("generate", "", run, GENERATE)
    return Writing(**question.check(given))


QUESTIONS = (
    Question(
        "run",
        "Let a model read a text or a picture, with edits and with tokens that it writes; the scene is added.",
        run,
        {
            "scene": Parameter("string", "the scene that is to be run again", low=1, high=40, nullable=True),
            "model": Parameter("string", "the name of a model, one of meta's", low=1, high=1000, nullable=True),
            "text": Parameter("string", "the text to read", low=1, high=MAX_LETTERS, nullable=True),
            "image": Parameter("string", "the id of a picture that was sent", low=1, high=40, nullable=True),
            "target": Parameter("string", "what an encoder-decoder writes", low=1, high=MAX_LETTERS, nullable=True),
            "generate": Parameter("object", "how a decoder goes on with the text", nullable=True),
            "edits": Parameter("array", "edits in force", high=MAX_EDITS, nullable=True),
        },
        method="POST",
        slow=True,
    ),
    Question(
        "effect",
        "Take away one head, layer, link or token after the other, and say what that does to the answer.",
        effect,
        {
            "scene": Parameter("string", "the id of a scene; the first where not given", low=1, high=40, nullable=True),
            "over": Parameter("string", "what to take away", "heads", choices=("heads", "layers", "links", "tokens")),
            "layer": Parameter("integer", "the layer whose links are cut", low=0, high=MAX_POSITION, nullable=True),
            "head": Parameter("integer", "the head whose links are cut", low=0, high=MAX_POSITION, nullable=True),
            "query": Parameter("integer", "the query whose links are cut", low=0, high=MAX_POSITION, nullable=True),
        },
        method="POST",
        slow=True,
    ),
    Question("image", "Give a picture that `run` can be told to read: its bytes.", receive_image, method="PUT"),
)
