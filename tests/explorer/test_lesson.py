"""The numbers of the lesson are those of the derivation, of the recording and of the layer itself."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.derivation import Derivation, derive
from clearhead.errors import InputError
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.questions.lesson import DROPOUT, MAX_KEYS, NOT_RECORDED, STEPS
from clearhead.explorer.scene import Scene
from clearhead.seeing import watch

KINDS = ["sentiment", "novels", "pictures", "pronounce"]
LAYER, HEAD, QUERY = -1, 1, 4


class Heads(nn.Module):
    """Attention by the fused kernel, in no module that anything could be asked of."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, **self.options)


def lesson(exploration: Exploration, scenes: dict[str, Scene], kind: str, **more: int) -> tuple[dict[str, Any], Scene]:
    """Return the lesson of the last layer of a scene."""
    scene = scenes[kind]
    given = {"layer": scene.seen.numbers[LAYER], "head": HEAD, "query": QUERY, **more}
    return exploration.ask("lesson", scene=f"s{list(scenes).index(kind) + 1}", **given).meta, scene


def derivation(scene: Scene) -> Derivation:
    """Return the derivation of the same query."""
    name = scene.seen.name(scene.seen.numbers[LAYER])
    given, layer = scene.given[name], scene.model.get_submodule(name)  # type: ignore[union-attr]
    assert isinstance(layer, MultiHeadAttention)
    words = [str(i) for i in range(len(given.x))]
    memory = {} if given.memory is None else {"memory_words": [str(i) for i in range(len(given.memory))]}
    return derive(
        layer,
        given.x,
        words,
        query=QUERY,
        head=HEAD,
        mask=given.mask,
        memory=given.memory,
        **memory,  # type: ignore[arg-type]
    )


def close(found: Any, wanted: Tensor | float) -> bool:
    wanted = torch.as_tensor(wanted)
    torch.testing.assert_close(torch.tensor(found, dtype=wanted.dtype), wanted, rtol=2e-4, atol=2e-5)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_the_lesson_has_the_numbers_of_the_derivation(
    kind: str, exploration: Exploration, scenes: dict[str, Scene]
) -> None:
    found, scene = lesson(exploration, scenes, kind)
    told = derivation(scene)
    keys = torch.tensor(found["keys"])
    allowed = told["allowed"]
    assert found["n_allowed"] == int(allowed.sum()) and found["allowed"] == allowed[keys].tolist()
    assert close(found["values"]["lengths"], told["values"].norm(dim=-1)[keys])
    assert close(found["naive"]["vector"], told["naive_sum"])
    assert close(found["scores"], told["scores"][keys])
    by_name = {scale["name"]: scale for scale in found["scales"]}
    for name, factor, std, peak in zip(("none", "root", "D"), told["factors"], told["stds"], told["peaks"]):
        scale = by_name[name]
        assert close([scale["factor"], scale["std"], scale["peak"]], torch.stack([factor, std, peak]))
    assert close(found["weights"], told["weights"][keys]) and close(
        by_name[found["own"]]["weights"], told["weights"][keys]
    )
    assert close(found["mix"]["vector"], told["head_output"])
    assert close(found["projection"]["added"], told["added"].norm(dim=-1))
    assert close(found["projection"]["products"], told["added"] @ told["added"].T)
    assert close(found["projection"]["output"], told["output"].norm())
    assert close(found["projection"]["concatenated"], told["concatenated"].norm())
    assert [head["key"] for head in found["heads"]] == told["all_weights"].argmax(-1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_lesson_has_the_lines_of_the_derivation(
    kind: str, exploration: Exploration, scenes: dict[str, Scene]
) -> None:
    found, scene = lesson(exploration, scenes, kind)
    told = {step.name: step for step in derivation(scene).steps}
    for name, (theirs, _) in STEPS.items():
        if theirs:
            step = found["steps"][name]
            assert (step["equation"], step["code"]) == (told[theirs].equation, told[theirs].source.text)
    assert found["steps"]["dropout"]["code"] is None and found["missing"] == {}
    assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_gradient_are_those_of_the_softmax(
    kind: str, exploration: Exploration, scenes: dict[str, Scene]
) -> None:
    found, _ = lesson(exploration, scenes, kind)
    for scale in found["scales"]:
        z = torch.tensor([-math.inf if z is None else z for z in scale["z"]], dtype=torch.float64)
        weights = z.softmax(0)
        if not found["left_out"]["keys"]:
            assert close(scale["weights"], weights)
            assert close(scale["entropy"], torch.distributions.Categorical(weights).entropy())
            slopes = torch.autograd.functional.jacobian(lambda z: z.softmax(0), z).diagonal()
            assert close(scale["gradient"], slopes.sum())


def test_weights_moved_are_those_of_the_recording(exploration: Exploration, scenes: dict[str, Scene]) -> None:
    found, scene = lesson(exploration, scenes, "sentiment")
    layer = scene.seen.numbers[LAYER]
    projection = scene.model.get_submodule(scene.seen.name(layer)).out_proj.weight  # type: ignore[union-attr]
    assert close(found["values"]["moved"], scene.seen.map(layer, HEAD, [QUERY], of="values")[0])
    assert close(found["projection"]["moved"], scene.seen.map(layer, HEAD, [QUERY], of=projection)[0])


def test_without_its_mask_a_decoder_would_look_ahead(exploration: Exploration, scenes: dict[str, Scene]) -> None:
    found, scene = lesson(exploration, scenes, "novels")
    call = scene.seen.call(scene.seen.numbers[LAYER])
    free = (call.scale * call.q[0, HEAD, QUERY] @ call.k[0, call.kv_of[HEAD]].T).softmax(0)
    if not found["biased"]:
        assert close(found["unmasked"], free[torch.tensor(found["keys"])])
        assert close(found["to_hidden"], free[QUERY + 1 :].sum())
    assert found["n_allowed"] == QUERY + 1


def test_dropout_strikes_what_its_seed_says_and_keeps_the_sum_on_average(
    exploration: Exploration, scenes: dict[str, Scene]
) -> None:
    drawn = [lesson(exploration, scenes, "sentiment", seed=seed)[0] for seed in range(40)]
    assert drawn[3]["dropout"] == lesson(exploration, scenes, "sentiment", seed=3)[0]["dropout"]
    struck = [sum(one["dropout"]["struck"]) for one in drawn]
    assert struck == [one["dropout"]["n_struck"] for one in drawn] and len(set(struck)) > 1
    for one in drawn:
        for weight, gone, left in zip(one["weights"], one["dropout"]["struck"], one["dropout"]["weights"]):
            assert left == (0 if gone else pytest.approx(weight / (1 - DROPOUT)))
    n = len(drawn) * drawn[0]["n_keys"]
    assert abs(sum(struck) / n - DROPOUT) < 4 * math.sqrt(DROPOUT * (1 - DROPOUT) / n)


def test_of_a_recording_alone_the_lesson_says_what_is_missing() -> None:
    q, k, v = torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    for values, missing in ((False, {"values", "projection"}), (True, {"projection"})):
        with torch.no_grad(), watch(model := Heads(), values=values) as seen:
            model(q, k, v)
        found = Exploration([Scene.of(seen)]).ask("lesson", layer=0, head=1, query=3).meta
        assert set(found["missing"]) == missing <= set(NOT_RECORDED)
        assert close(found["scores"], q[0, 1, 3] @ k[0, 1].T)
        assert found["steps"]["scale"] == {
            "equation": STEPS["scale"][1], "sentence": None, "code": None, "file": None, "line": None
        }  # fmt: skip
        if values:
            assert close(found["mix"]["vector"], Heads()(q, k, v)[0, 1, 3])
            assert close(found["naive"]["vector"], v[0, 1].mean(0))


def test_a_scale_of_ones_own_stands_beside_the_three() -> None:
    q, k, v = torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    for scale, own in ((0.3, "own"), (0.5, "root"), (1.0, "none")):
        with torch.no_grad(), watch(model := Heads(scale=scale)) as seen:
            model(q, k, v)
        found = Exploration([Scene.of(seen)]).ask("lesson", layer=0, head=0, query=3).meta
        names = [one["name"] for one in found["scales"]]
        assert found["own"] == own and names == ["none", "root", "D"] + ["own"] * (own == "own")
        used = found["scales"][names.index(own)]
        assert used["factor"] == pytest.approx(scale) and close(used["weights"], seen.map(0, 0)[3])


def test_a_bias_counts_under_every_scale_and_a_hidden_key_gets_nothing() -> None:
    q, k, v = torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).index_fill(1, torch.tensor([2]), -math.inf)
    with torch.no_grad(), watch(model := Heads(attn_mask=bias)) as seen:
        model(q, k, v)
    found = Exploration([Scene.of(seen)]).ask("lesson", layer=0, head=0, query=3).meta
    for scale in found["scales"]:
        wanted = (scale["factor"] * (q[0, 0, 3] @ k[0, 0].T) + bias[3]).softmax(0)
        assert close(scale["weights"], wanted) and scale["z"][2] is None
    assert found["biased"] and found["unmasked"] is None and not found["allowed"][2]


def test_of_a_long_text_the_heaviest_keys_are_listed_and_the_rest_is_counted() -> None:
    q, k, v = torch.randn(3, 1, 2, 600, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), watch(model := Heads(), values=True) as seen:
        model(q, k, v)
    found = Exploration([Scene.of(seen)]).ask("lesson", layer=0, head=0, query=3).meta
    assert found["keys"] == sorted(found["keys"]) and len(found["keys"]) == MAX_KEYS
    assert found["left_out"]["keys"] == 600 - MAX_KEYS
    assert sum(found["weights"]) + found["left_out"]["weight"] == pytest.approx(1, abs=1e-5)
    assert close(found["naive"]["vector"], v[0, 0].mean(0))


class Squared(nn.Module):
    """Attention by hand whose weights are kept."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1).square() @ v


def test_of_weights_that_were_kept_there_are_no_scores_and_the_lesson_says_so() -> None:
    with torch.no_grad(), watch(model := Squared(), values=True) as seen:
        model(*torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0)))
    found = Exploration([Scene.of(seen)]).ask("lesson", layer=0, head=1, query=3).meta
    assert found["weights"] == seen.map(0, 1)[3].tolist()
    assert found["scales"] is None and found["missing"]["scores"] == NOT_RECORDED["scores"]


def test_a_query_that_does_not_exist_is_refused(exploration: Exploration, scenes: dict[str, Scene]) -> None:
    with pytest.raises(InputError, match="query= expects a query from 0 to 8, got 99"):
        lesson(exploration, scenes, "sentiment", query=99)
