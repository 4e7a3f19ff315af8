"""Every answer of an `Exploration` is what `Recording` says, in the form that the page reads."""

import base64
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError
from clearhead.explorer import blocks
from clearhead.explorer.exploration import MAX_SCENES, Exploration
from clearhead.explorer.questions import QUESTIONS, exact, maps
from clearhead.explorer.runner import Runner
from clearhead.explorer.scene import Origin, Scene
from clearhead.explorer.table import Answer, Parameter
from clearhead.seeing import Recording, open_recording, watch
from clearhead.seeing.call import Call
from clearhead.seeing.maps import pyramid
from clearhead.seeing.rule import Rule

STEP = np.log(1 / blocks.FLOOR) / blocks.N_STEPS  # of the logarithm, between two bytes


def floats(answer: Answer) -> Tensor:
    assert answer.body is not None
    return torch.tensor(struct.unpack(f"<{len(answer.body) // 4}f", answer.body))


def shares(answer: Answer, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares that bytes stand for, and where they say nothing may be looked at."""
    assert answer.body is not None
    found = np.frombuffer(answer.body, np.uint8).reshape(-1, rows, cols).astype(float)
    return np.where(found < 2, 0, blocks.FLOOR ** (1 - (found - 2) / blocks.N_STEPS)), found == 0


def assert_shares(found: np.ndarray, wanted: Tensor) -> None:
    """Compare shares from bytes with numbers: half a step of the scale apart at most, or below the floor."""
    expected = wanted.double().numpy()
    above = expected >= blocks.FLOOR
    assert (found[~above] == 0).all()
    assert np.abs(np.log(found[above]) - np.log(expected[above].clip(max=1))).max() <= 0.51 * STEP


def recording(n: int, *, rule: Rule | None = None, heads: int = 2, batch: int = 1) -> Recording:
    """Return a recording of one random call."""
    random = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, batch, heads, n, 16, generator=random)
    rule = Rule(reach=0) if rule is None else rule
    seen = Recording()
    call = Call(q, k, rule, 0.25, tuple(range(heads)), tuple(range(heads)), heads, heads, None)
    seen.calls[seen.index("layer")] = [call]
    return seen


def cut_rows(n: int) -> list[int]:
    return pyramid.edges(n, maps.OVERVIEW)


@pytest.mark.parametrize("kind", ["sentiment", "novels", "pictures", "pronounce"])
def test_overviews_and_tiles_are_the_recordings(kind: str, exploration: Exploration, scenes: dict[str, Scene]) -> None:
    seen, name = scenes[kind].seen, f"s{list(scenes).index(kind) + 1}"
    for layer in seen.numbers:
        one = seen.call(layer)
        answer = exploration.ask("overview", scene=name, layer=layer)
        found, _ = shares(answer, answer.meta["rows"], answer.meta["cols"])
        n_rows = torch.tensor(answer.meta["row_cuts"]).diff()[:, None]
        assert_shares(found, seen.overview(layer) / n_rows)
        assert answer.meta["exact"] and answer.meta["heads"] == list(one.heads)
        for head in one.heads[:3]:
            answer = exploration.ask("tile", scene=name, layer=layer, head=head)
            shown, hidden = shares(answer, answer.meta["rows"], answer.meta["cols"])
            want = seen.map(layer, head, slice(0, 256), slice(0, 256))
            assert_shares(shown[0], want)
            ahead = torch.arange(want.shape[1]) > torch.arange(want.shape[0])[:, None]
            causal = kind == "novels" or scenes[kind].part(layer) == "decoder"
            assert (hidden[0] == (ahead.numpy() if causal else False)).all()
            assert answer.meta["max"] == pytest.approx(float(want.max()), rel=1e-4)


@pytest.mark.parametrize("kind", ["sentiment", "novels", "pronounce"])
def test_rows_columns_margins_and_links_are_the_recordings(
    kind: str, exploration: Exploration, scenes: dict[str, Scene]
) -> None:
    seen, name = scenes[kind].seen, f"s{list(scenes).index(kind) + 1}"
    layer, head = seen.numbers[-1], 1
    place = {"scene": name, "layer": layer, "head": head}
    whole = seen.map(layer, head)
    torch.testing.assert_close(floats(exploration.ask("row", query=3, **place)), whole[3])
    torch.testing.assert_close(floats(exploration.ask("row", query=2, to=4, **place)), whole[2:5].mean(0))
    torch.testing.assert_close(floats(exploration.ask("column", key=2, **place)), whole[:, 2])
    torch.testing.assert_close(floats(exploration.ask("column", key=1, to=3, **place)), whole[:, 1:4].sum(1))
    margins = exploration.ask("margins", **place)
    assert margins.meta == {"n_keys": whole.shape[1], "n_queries": whole.shape[0], "exact": True}
    received, entropy = floats(margins).split([margins.meta["n_keys"], margins.meta["n_queries"]])
    torch.testing.assert_close(received, seen.received(layer)[head])
    torch.testing.assert_close(entropy, seen.entropy(layer)[head])
    links = exploration.ask("links", query=3, coverage=0.5, **place).meta["links"]
    assert links == [{"key": link.key, "weight": link.weight} for link in seen.links(layer, head, 3, 0.5)]
    strongest = exploration.ask("strongest", scene=name, count=3, apart=1).meta
    assert strongest["links"] == [vars(link) for link in seen.strongest(3, apart=1)] and strongest["exact"]


def test_four_blocks_of_a_scale_are_one_of_the_next() -> None:
    exploration = Exploration([Scene.of(recording(600))])
    tiles = [
        maps._tile(exploration, scene=None, call=-1, batch=0, layer=0, head=0, mode="sum", s=s, ty=0, tx=0)
        for s in (1, 2)
    ]
    fine = tiles[0].mass[0]
    fine = torch.nn.functional.pad(fine, (0, fine.shape[1] % 2, 0, fine.shape[0] % 2))
    summed = fine.unflatten(1, (-1, 2)).sum(2).unflatten(0, (-1, 2)).sum(1)
    torch.testing.assert_close(tiles[1].mass[0, : len(summed), : summed.shape[1]], summed)
    assert maps.scales(600) == 3 and maps.scales(256) == 1 and maps.scales(257) == 2


def test_a_difference_is_one_tile_less_the_other(exploration: Exploration, scenes: dict[str, Scene]) -> None:
    same = exploration.ask("difference", other="s1", layer=0, head=0)
    assert set(same.body or b"") == {128} and same.meta["largest"] == 0
    with pytest.raises(InputError, match="differ in length"):
        exploration.ask("difference", other="s2", layer=0, head=0)
    change = torch.tensor([[0.0, 1.0, -1.0, 0.01, -0.01]])
    middle = round(127 * np.log1p(100) / np.log1p(1e4))
    assert list(blocks.signed_bytes(change)) == [128, 255, 1, 128 + middle, 128 - middle]


# ---------------------------------------------------------------- long texts


def test_what_is_too_long_is_a_sample_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recording(1024)
    whole = Exploration([Scene.of(seen)]).ask("overview", layer=0)
    monkeypatch.setattr(maps, "MAX_EXACT_WEIGHTS", 1024)
    exploration = Exploration([Scene.of(seen)])
    estimate = exploration.ask("overview", layer=0)
    assert whole.meta["exact"] and not estimate.meta["exact"]
    wanted, found = (shares(answer, 32, 32)[0] for answer in (whole, estimate))
    assert 0 < estimate.meta["error"] < 0.2
    assert np.abs(wanted - found).max() < 6 * estimate.meta["error"]
    assert (shares(whole, 32, 32)[1] == shares(estimate, 32, 32)[1]).all()
    tile = exploration.ask("tile", layer=0, head=0, s=2)
    assert not tile.meta["exact"]
    margins = exploration.ask("margins", layer=0, head=0)
    received, entropy = floats(margins).split([1024, 1024])
    assert not margins.meta["exact"] and int((~entropy.isnan()).sum()) == margins.meta["sampled"] == maps.N_SAMPLED
    kept = ~entropy.isnan()
    torch.testing.assert_close(entropy[kept], seen.entropy(0)[0][kept])
    assert float(received.sum()) == pytest.approx(1024, rel=1e-3)


def test_the_error_of_a_sample_covers_the_truth_as_often_as_it_says() -> None:
    call = recording(2048, heads=1).call(0)
    cuts = cut_rows(2048)
    truth = blocks.blocks(call, 0, [0], cuts, cuts, "sum", None)
    found = blocks.sampled(call, 0, [0], cuts, cuts, "sum", None, 16)
    assert found.error is not None
    known = found.visible & (found.error > 0)
    within = (found.share - truth.share).abs()[known] <= 2 * found.error[known]
    assert float(within.float().mean()) > 0.85  # 95 % if rows of a block were normally distributed
    every = blocks.sampled(call, 0, [0], cuts, cuts, "sum", None, 2048)
    torch.testing.assert_close(every.share, truth.share)
    assert every.error is not None and float(every.error.max()) == 0


def test_padding_counts_nowhere() -> None:
    rule = Rule(keys=torch.tensor([[5, 40]]))
    exploration = Exploration([Scene.of(recording(40, rule=rule))])
    answer = exploration.ask("tile", layer=0, head=0)
    hidden = shares(answer, 40, 40)[1][0]
    assert hidden[:5].all() and hidden[:, :5].all() and not hidden[5:, 5:].any()


@pytest.mark.parametrize("rule", ["reach", "spans", "allowed", "packed", "bias", "window"])
def test_blocks_are_hidden_where_nobody_may_look(rule: str) -> None:
    n, may = 48, torch.ones(48, 48, dtype=torch.bool).tril()
    ends = torch.stack([torch.zeros(48, dtype=torch.long), torch.arange(1, 49)], -1)
    made = {
        "reach": Rule(reach=0),
        "spans": Rule(spans=ends[None, None]),
        "allowed": Rule(allowed=may[None, None]),
        "packed": Rule(packed=torch.from_numpy(np.packbits(may.numpy(), axis=-1, bitorder="little"))[None, None]),
        "bias": Rule(bias=torch.zeros(1, 1, 48, 48).masked_fill(~may, -torch.inf)),
        "window": Rule(reach=0, since=-3),
    }[rule]
    may = may & (torch.arange(n) >= torch.arange(n)[:, None] - 3) if rule == "window" else may
    call = recording(n, rule=made, heads=1).call(0)
    cuts = list(range(0, 49, 4))
    found = blocks.blocks(call, 0, [0], cuts, cuts, "sum", None)
    wanted = may.unflatten(0, (-1, 4)).any(1).unflatten(1, (-1, 4)).any(2)
    assert torch.equal(found.visible.expand(1, -1, -1)[0], wanted)


def test_rows_that_were_not_kept_are_left_out() -> None:
    whole = recording(64)
    call = whole.call(0)
    some = torch.arange(0, 64, 2)
    seen = Recording()
    seen.calls[seen.index("layer")] = [blocks.subset(call, some)]
    exploration = Exploration([Scene.of(seen)])
    answer = exploration.ask("tile", layer=0, head=0, s=0)
    shown, hidden = shares(answer, 64, 64)
    assert_shares(shown[0, ::2], whole.map(0, 0)[::2])
    assert hidden[0, 1::2].all()
    with pytest.raises(InputError, match="query 3 was not recorded"):
        exploration.ask("row", layer=0, head=0, query=3)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_exact_blocks_replace_a_sample_and_stay(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recording(1500)
    wanted = {s: Exploration([Scene.of(seen)]).ask("tile", layer=0, head=1, s=s, mode=mode) for s in (1, 2, 3)}
    overview = Exploration([Scene.of(seen)]).ask("overview", layer=0, mode=mode)
    for room in (maps, exact):
        monkeypatch.setattr(room, "MAX_EXACT_WEIGHTS", 2**16)
    exploration = Exploration([Scene.of(seen)])
    assert not exploration.ask("tile", layer=0, head=1, s=2, mode=mode).meta["exact"]
    for given in ({"head": 1}, {"head": None}):
        events = list(exploration.stream("exact", layer=0, mode=mode, **given))
        assert events[-1]["event"] == "done" and events[-2]["done"] == events[-2]["of"]
    for s, answer in wanted.items():
        found = exploration.ask("tile", layer=0, head=1, s=s, mode=mode)
        assert found.meta["exact"]
        pair = [np.frombuffer(each.body or b"", np.uint8).astype(int) for each in (found, answer)]
        assert np.abs(pair[0] - pair[1]).max() <= 1 and found.meta["max"] == pytest.approx(answer.meta["max"], rel=1e-4)
    assert exploration.ask("overview", layer=0, mode=mode).meta["exact"]
    assert exploration.ask("overview", layer=0, mode=mode).body == overview.body
    rows = [base64.b64decode(event["bytes"]) for event in events if event["event"] == "block"]
    assert len(rows) == 32 and rows[5][:32] == (overview.body or b"")[5 * 32 : 6 * 32]


def test_exact_overviews_are_kept_beside_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.seen"
    recording(700).save(path)
    wanted = Exploration([Scene.of(recording(700))]).ask("overview", layer=0)
    for room in (maps, exact):
        monkeypatch.setattr(room, "MAX_EXACT_WEIGHTS", 2**14)

    def opened() -> Exploration:
        return Exploration([Scene.of(open_recording(path), origin=Origin(text=str(path), kind="recording"))])

    exploration = opened()
    assert not exploration.ask("overview", layer=0).meta["exact"]
    assert list(exploration.stream("exact", layer=0))[-1]["event"] == "done"
    again = opened().ask("overview", layer=0)
    assert again.meta["exact"] and again.body == wanted.body
    recording(701).save(path)  # another one in its place
    assert not opened().ask("overview", layer=0).meta["exact"]
    recording(700).save(path)
    (tmp_path / "run.seen.overviews").write_bytes(b"damaged")
    assert not opened().ask("overview", layer=0).meta["exact"]


# ---------------------------------------------------------------- one weight


@pytest.mark.parametrize("kind", ["sentiment", "novels", "pictures", "pronounce"])
def test_why_takes_a_weight_apart_and_the_parts_make_it_again(
    kind: str, exploration: Exploration, scenes: dict[str, Scene]
) -> None:
    seen, name = scenes[kind].seen, f"s{list(scenes).index(kind) + 1}"
    for layer in (seen.numbers[0], seen.numbers[-1]):
        found = exploration.ask("why", scene=name, layer=layer, head=1, query=4, key=2).meta
        row = seen.row(layer, 1, 4)
        assert found["weight"] == float(row[2]) and found["rank"] == 1 + int((row > row[2]).sum())
        products = sum(channel["product"] for channel in found["channels"]) + found["rest"]
        assert products == pytest.approx(found["score"]) and found["scaled"] == found["scale"] * found["score"]
        assert found["z"] == pytest.approx(found["scaled"] + (found["bias"] or 0), rel=1e-4)
        assert np.exp(found["z"] - found["lse"]) == pytest.approx(found["weight"], rel=1e-4)
        sizes = [abs(channel["product"]) for channel in found["channels"]]
        assert sizes == sorted(sizes, reverse=True) and len(found["softmax"]["top"]) == min(16, len(row))
        model = scenes[kind].model
        assert model is not None
        projection = model.get_submodule(seen.name(layer)).out_proj.weight
        moved = seen.map(layer, 1, [4], [2], of=projection)
        assert found["moved_projected"] == pytest.approx(float(moved), rel=1e-4)
        assert [step["name"] for step in found["steps"]][-1] == "all heads" and found["steps"][3]["line"] > 1
        assert json.dumps(found, allow_nan=False)


def test_why_says_that_a_key_is_hidden(exploration: Exploration) -> None:
    found = exploration.ask("why", scene="s2", layer=0, head=0, query=2, key=5).meta
    assert (found["hidden"], found["z"], found["weight"]) == (True, None, 0.0)


def test_why_of_any_recording_has_plain_steps() -> None:
    found = Exploration([Scene.of(recording(8))]).ask("why", layer=0, head=0, query=3, key=1).meta
    assert [step["name"] for step in found["steps"]] == ["score", "scale", "softmax"]
    assert found["moved"] is None and found["steps"][0]["code"] is None


class Squared(nn.Module):
    """Attention by hand whose weights are kept."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1).square() @ v


def test_why_of_weights_that_were_kept_says_so() -> None:
    with torch.no_grad(), watch(model := Squared()) as seen:
        model(*(torch.randn(1, 2, 8, 4) for _ in range(3)))
    found = Exploration([Scene.of(seen)]).ask("why", layer=0, head=1, query=3, key=2).meta
    assert found["weight"] == float(seen.map(0, 1)[3, 2]) and found["score"] is None
    assert "it was kept" in found["steps"][0]["sentence"]


# ---------------------------------------------------------------- what a scene is


def test_meta_says_what_a_text_is(exploration: Exploration) -> None:
    meta = exploration.ask("meta").meta
    axis = meta["axes"][0]
    assert axis["tokens"] == ["[CLS]", "attention", "isn", "'", "t", "too", "sha", "by"[:0] + "bby", "[SEP]"]
    assert axis["spaces"] == [1, 0, 1, 0, 0, 1, 1, 0, 1]
    assert [6, 8] in [list(word) for word in axis["words"]]
    assert meta["answer"]["labels"][0] == "positive"
    said = meta["strongest"]
    whole = floats(exploration.ask("row", layer=said["layer"], head=said["head"], query=said["query"]))
    assert float(whole[said["key"]]) == pytest.approx(said["weight"]) and "“shabby”" in said["sentence"]
    can = [name for name, can in meta["can"].items() if can]
    assert can == ["run", "edit", "effect", "temperature", "why_values", "image"]


def test_meta_tells_encoder_decoder_and_cross_attention_apart(exploration: Exploration) -> None:
    meta = exploration.ask("meta", scene="s4").meta
    parts = [(layer["part"], layer["query_axis"], layer["key_axis"], layer["title"]) for layer in meta["layers"]]
    assert parts[0] == ("encoder", 0, 0, "encoder 0") and parts[3] == ("decoder", 1, 1, "decoder 0")
    assert parts[4] == ("cross", 1, 0, "decoder 0 cross")
    assert [axis["name"] for axis in meta["axes"]] == ["source", "target"]
    for layer in meta["layers"]:
        assert layer["n_queries"] == len(meta["axes"][layer["query_axis"]]["tokens"])
        assert layer["n_keys"] == len(meta["axes"][layer["key_axis"]]["tokens"])


def test_meta_says_where_on_the_picture_patches_lie(exploration: Exploration, scenes: dict[str, Scene]) -> None:
    axis = exploration.ask("meta", scene="s3").meta["axes"][0]
    area = axis["image"]
    assert (area["width"], area["height"], area["x"], area["y"], area["w"], area["h"]) == (84, 56, 0, 0, 84, 56)
    assert area["first"] + area["rows"] * area["cols"] == len(axis["tokens"])
    picture = exploration.ask("image", scene="s3")
    assert (picture.body or b"")[1:4] == b"PNG" and picture.media_type == "image/png"
    with pytest.raises(InputError, match="of no picture"):
        exploration.ask("image", scene="s1")


def test_running_text_of_a_byte_level_tokenizer_is_the_text(exploration: Exploration) -> None:
    axis = exploration.ask("meta", scene="s2").meta["axes"][0]
    said = "".join(" " * space + token for space, token in zip(axis["spaces"], axis["tokens"]))
    assert said == "It was the best of times,\nit was the worst of times; " * 20


def test_calls_of_a_generation_are_named_and_have_their_own_sizes() -> None:
    seen = Recording()
    whole = recording(9).call(0)
    calls = [blocks.subset(whole, torch.arange(9)[:7]), blocks.subset(whole, torch.arange(9)[7:8])]
    first, later = (replace(one, rule=Rule(reach=shift), n_asked=None) for one, shift in zip(calls, (0, 7)))
    first, later = (replace(one, k=whole.k[:, :, :n], forward=i) for i, (one, n) in enumerate(((first, 7), (later, 8))))
    seen.calls[seen.index("layer")] = [first, later]
    exploration = Exploration([Scene.of(seen, words=list("abcdefgh"))])
    meta = exploration.ask("meta").meta
    assert [call["label"] for call in meta["calls"]] == ["prompt", "token 1 'h'"]
    assert (meta["layers"][0]["n_queries"], meta["layers"][0]["first_query"]) == (1, 7)
    assert exploration.ask("meta", call=0).meta["layers"][0]["n_queries"] == 7
    assert exploration.ask("tile", call=0, layer=0, head=0).meta["rows"] == 7


def test_heads_are_the_recordings(exploration: Exploration, scenes: dict[str, Scene]) -> None:
    found = exploration.ask("heads").meta
    wanted = scenes["sentiment"].seen.heads(separators=[8], tokens=scenes["sentiment"].tokens)
    assert found["exact"] and [row["kind"] for row in found["heads"]] == [habit.kind for habit in wanted]
    assert [row["entropy"] for row in found["heads"]] == [habit.entropy for habit in wanted]


# ---------------------------------------------------------------- what cannot be asked


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("metta", {}, "did you mean 'meta'"),
        ("meta", {"scene": "s9"}, "there is no scene 's9'"),
        ("meta", {"bogus": 1}, "meta has no parameter 'bogus'"),
        ("tile", {"layer": 0}, "tile needs head="),
        ("tile", {"layer": 0, "head": 99}, "there is no head 99"),
        ("tile", {"layer": 0, "head": 0, "s": 3}, "a scale from 0 to 0"),
        ("tile", {"layer": 0, "head": 0, "tx": 1}, "tx= expects a tile from 0 to 0"),
        ("tile", {"layer": 0, "head": 0, "mode": "mean"}, "mode= expects sum or max"),
        ("tile", {"layer": -1, "head": 0}, "layer= expects a whole number from 0"),
        ("tile", {"layer": True, "head": 0}, "layer= expects a whole number"),
        ("row", {"layer": 0, "head": 0, "query": 99}, "a query from 0 to 8"),
        ("row", {"layer": 0, "head": 0, "query": 3, "to": 1}, "a span that begins at 3"),
        ("column", {"layer": 0, "head": 0, "key": 9}, "a key from 0 to 8"),
        ("links", {"layer": 0, "head": 0, "query": 0, "coverage": 1.5}, "coverage= expects a number"),
        ("overview", {"layer": 0, "batch": 1}, "there is no text 1"),
        ("strongest", {"without": "a,b"}, "without="),
    ],
)
def test_a_wrong_question_gets_a_sentence(
    name: str, given: dict[str, object], said: str, exploration: Exploration
) -> None:
    with pytest.raises(InputError, match=said):
        exploration.ask(name, **given)


def test_a_layer_or_call_that_is_not_there_gets_a_sentence(exploration: Exploration) -> None:
    with pytest.raises(WatchError, match="layer 77 is not in this recording"):
        exploration.ask("overview", layer=77)
    with pytest.raises(WatchError, match="there is no call 4"):
        exploration.ask("overview", layer=0, call=4)


def test_the_oldest_scene_that_came_later_makes_room(scenes: dict[str, Scene], runner: Runner) -> None:
    exploration = Exploration([scenes["sentiment"]], runner)
    names = [exploration.add(scenes["sentiment"]) for _ in range(MAX_SCENES + 1)]
    assert list(exploration.scenes) == ["s1", *names[1:]]


@pytest.mark.parametrize("text", ["", "1.5", "٣", "1e3", "--2", "9" * 30])
def test_a_whole_number_in_a_query_is_digits(text: str) -> None:
    with pytest.raises(InputError, match="expects a whole number"):
        Parameter("integer", "a number").read("n", text)


def test_every_question_says_what_it_is() -> None:
    for question in QUESTIONS.values():
        assert question.says.endswith(".") and all(parameter.says for parameter in question.parameters.values())


def test_what_is_said_of_a_word_of_ones_choice_is_its_heaviest_link_to_another(exploration: Exploration) -> None:
    scene = exploration.scenes["s1"]
    said = exploration.ask("meta").meta["strongest"]
    assert exploration.ask("hardest", query=said["query"]).meta["strongest"] == said
    found = exploration.ask("hardest", query=1).meta["strongest"]
    words = [
        i for i in range(2, len(scene.axes[0])) if scene.axes[0].tokens[i].isalpha() and not scene.axes[0].special[i]
    ]
    rows = torch.cat([scene.seen.to_dense(layer)[0, :, 1] for layer in scene.seen.numbers])[:, words]
    assert found["weight"] == pytest.approx(float(rows.max()), rel=1e-5)
    assert found["key"] == words[int(rows.max(0).values.argmax())]
    with pytest.raises(InputError, match="query 99 is not recorded"):
        exploration.ask("hardest", query=99)
