"""Runs that a page asks for: what they report, what edits do, and that whoever leaves stops them."""

import io
import threading
from typing import Any

import pytest
import torch
from PIL import Image

from clearhead.errors import InputError
from clearhead.explorer.edits import NOTE
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.jobs import Cancelled, Events, Report, stoppable
from clearhead.explorer.runner import Runner
from clearhead.seeing import edit, effect, watch


def done(exploration: Exploration, name: str, **body: Any) -> dict[str, Any]:
    """Return the last event of a stream, which is no error."""
    events = list(exploration.stream(name, **body))
    assert events[-1]["event"] == "done", events[-1]
    return events[-1]


def failed(exploration: Exploration, name: str, **body: Any) -> str:
    """Return the sentence of an error that ends a stream."""
    events = list(exploration.stream(name, **body))
    assert events[-1]["event"] == "error"
    return str(events[-1]["message"])


def test_a_text_that_is_run_becomes_a_scene(exploration: Exploration) -> None:
    last = done(exploration, "run", model="sentiment", text="not a good film")
    assert last["scene"] == "s5" and last["meta"]["title"] == "not a good film" and last["meta"]["edits"] == []
    assert last["meta"]["answer"]["labels"][0] == "negative"
    assert exploration.ask("tile", scene="s5", layer=0, head=0).meta["exact"]


def test_an_edited_run_is_what_the_model_gives_under_edit(exploration: Exploration, runner: Runner) -> None:
    edits = [{"off": {"layer": 2, "head": 0}}, {"cut": {"layer": 2, "head": None, "query": 7, "key": 3}}]
    meta = done(exploration, "run", scene="s1", edits=edits)["meta"]
    reader, prepared = runner.reader("sentiment"), exploration.scenes["s1"].prepared
    assert prepared is not None
    with edit(reader.model) as change, watch(reader.model) as seen:
        change.switch_off(2, 0)
        change.cut(2, None, 7, 3)
        output = reader.run(prepared)
    assert max(meta["answer"]["probabilities"]) == pytest.approx(float(output.softmax(-1).max()))
    assert meta["edits"] == [edits[0], {"cut": {"layer": 2, "query": 7, "key": 3}}] and NOTE in meta["notes"]
    now = exploration.scenes[meta["id"]].seen
    assert torch.equal(now.map(4, 1), seen.map(4, 1))
    assert not torch.equal(now.map(4, 1), exploration.scenes["s1"].seen.map(4, 1))
    assert exploration.ask("difference", other=meta["id"], layer=4, head=1).meta["largest"] > 0


def test_a_hidden_token_moves_nothing_but_itself_into_others(exploration: Exploration, runner: Runner) -> None:
    meta = done(exploration, "run", scene="s1", edits=[{"hide": {"token": 7}}])["meta"]
    reader = runner.reader("sentiment")
    prepared = exploration.scenes["s1"].prepared
    assert prepared is not None
    with edit(reader.model) as change:
        change.cut(None, None, [0, 1, 2, 3, 4, 5, 6, 8], 7)
        output = reader.run(prepared)
    assert max(meta["answer"]["probabilities"]) == pytest.approx(float(output.softmax(-1).max()))


def test_a_temperature_moves_the_answer_as_the_edit_does(exploration: Exploration, runner: Runner) -> None:
    asked = [{"temperature": {"layer": 2, "factor": 4}}]
    meta = done(exploration, "run", scene="s1", edits=asked)["meta"]
    reader, prepared = runner.reader("sentiment"), exploration.scenes["s1"].prepared
    assert prepared is not None
    with edit(reader.model) as change:
        change.temperature(2, None, 4.0)
        output = reader.run(prepared)
    assert max(meta["answer"]["probabilities"]) == pytest.approx(float(output.softmax(-1).max()))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_token_of_either_text_of_a_pair_can_be_hidden(axis: int, exploration: Exploration) -> None:
    edits = [{"hide": {"token": 2, "axis": axis}}]
    meta = done(exploration, "run", model="pronounce", text="attention", target="AH0 T", edits=edits)["meta"]
    plain = done(exploration, "run", model="pronounce", text="attention", target="AH0 T")["meta"]
    then, now = (exploration.scenes[each["id"]].seen for each in (plain, meta))
    changed = {layer for layer in now.numbers if not torch.equal(now.map(layer, 0), then.map(layer, 0))}
    assert changed == ({1, 2, 4, 5, 6} if axis == 0 else {5, 6} if len(meta["axes"][1]["tokens"]) > 3 else set())


def test_a_decoder_streams_what_it_writes_and_prompt_and_answer_are_told_apart(exploration: Exploration) -> None:
    events = list(exploration.stream("run", model="novels", text="It was the", generate={"max_new_tokens": 6}))
    tokens = [event for event in events if event["event"] == "token"]
    meta = events[-1]["meta"]
    axis = meta["axes"][0]
    assert len(tokens) == 6 and axis["prompt"] == 3 and len(axis["tokens"]) == 9
    assert meta["answer"]["text"] == "".join(token["text"] for token in tokens)
    again = done(exploration, "run", scene=events[-1]["scene"], generate={"max_new_tokens": 2})["meta"]
    assert again["axes"][0]["tokens"] == axis["tokens"][:5] and again["axes"][0]["prompt"] == 3


def test_a_picture_that_is_sent_can_be_read(exploration: Exploration) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    sent = exploration.add_image(buffer.getvalue())
    assert (sent["width"], sent["height"]) == (40, 30)
    meta = done(exploration, "run", model="pictures", image=sent["image"])["meta"]
    assert meta["title"] == "picture" and meta["axes"][0]["image"]["width"] == 40


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"0" * 40])
def test_what_is_no_picture_is_a_sentence(data: bytes, exploration: Exploration) -> None:
    with pytest.raises(InputError):
        exploration.add_image(data)


def test_a_picture_that_claims_to_be_very_large_is_not_decoded(exploration: Exploration) -> None:
    buffer = io.BytesIO()
    Image.new("1", (6000, 6000)).save(buffer, "PNG")
    with pytest.raises(InputError, match="6000 x 6000 pixels"):
        exploration.add_image(buffer.getvalue())


def test_effects_are_those_of_effect(exploration: Exploration, runner: Runner) -> None:
    last = done(exploration, "effect", scene="s1", over="layers")
    prepared = exploration.scenes["s1"].prepared
    assert prepared is not None
    wanted = effect(runner.reader("sentiment").model, prepared.inputs[0], over="layers").to_json()
    assert last["rows"] == wanted["rows"] and last["before"] == wanted["before"]


def test_heads_know_their_effect_once_it_was_tried(exploration: Exploration) -> None:
    rows = done(exploration, "effect", scene="s3", over="heads")["rows"]
    known = {
        (head["layer"], head["head"]): head["effect"] for head in exploration.ask("heads", scene="s3").meta["heads"]
    }
    assert known == {(row["layer"], row["head"]): row["effect"] for row in rows}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "run needs one of text, image"),
        ({"text": "x", "scene": "s1", "model": "sentiment"}, "run needs one of"),
        ({"text": "x", "model": "/etc/passwd"}, "model expects one of sentiment"),
        ({"text": "x"}, "model expects one of"),
        ({"image": "p9", "model": "pictures"}, "there is no picture 'p9'"),
        ({"scene": "s1", "edits": [{"off": {}}]}, "off needs layer"),
        ({"scene": "s1", "edits": [{"of": {}}]}, "an edit is an object with one of off, cut, hide, temperature"),
        ({"scene": "s1", "edits": [{"off": {"layer": "a"}}]}, "layer of off expects a whole number"),
        ({"scene": "s1", "edits": [{"off": {"layer": 1, "query": 1}}]}, "off has no 'query'"),
        ({"scene": "s1", "generate": {"max_new_tokens": 0}}, "max_new_tokens= expects"),
        ({"scene": "s1", "generate": {"tokens": 1}}, "generate has no parameter 'tokens'"),
    ],
)
def test_a_wrong_run_is_refused_before_it_begins(body: dict[str, Any], said: str, exploration: Exploration) -> None:
    with pytest.raises(InputError, match=said):
        exploration.stream("run", **body)


def test_what_cannot_be_run_ends_with_a_sentence(exploration: Exploration) -> None:
    assert "there is no head 99" in failed(exploration, "run", scene="s1", edits=[{"off": {"layer": 0, "head": 99}}])
    assert "does not go on with a text" in failed(exploration, "run", scene="s1", generate={})
    assert "there is no scene" in failed(exploration, "run", scene="s99")
    assert "writes no target" in failed(exploration, "run", model="novels", text="x", target="y")


def test_whoever_leaves_stops_the_model_at_its_next_module(runner: Runner) -> None:
    reader = runner.reader("sentiment")
    prepared = reader.prepare("attention")
    reached = threading.Event()
    runs: list[str] = []

    def work(report: Report) -> None:
        with stoppable(reader.model, report, "reading"):
            while True:
                reader.run(prepared)
                report("ran")
                runs.append("ran")
                reached.set()

    events = Events(work)
    assert next(events)["event"] in ("progress", "ran")
    reached.wait()
    events.close()
    assert not events.thread.is_alive() and events.report.cancelled.is_set()
    n_runs = len(runs)
    with pytest.raises(Cancelled):
        events.report("ran")
    assert len(runs) == n_runs and not any(module._forward_pre_hooks.get(None) for module in reader.model.modules())


def test_a_bug_in_a_job_is_an_event_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def work(report: Report) -> None:
        raise ZeroDivisionError("of ours")

    assert list(Events(work)) == [{"event": "error", "message": "it failed with ZeroDivisionError: of ours"}]
    assert "a question failed" in caplog.text
