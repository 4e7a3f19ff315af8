"""What ran and was not seen is named by module, reason and forward, whatever else was seen of the same module."""

import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.seeing import Recording, edit, open_recording, watch
from clearhead.seeing.recordings.account import spans
from clearhead.seeing.sites.frames import UNSEEN

Heads = Callable[[Tensor, Tensor, Tensor], Tensor]


def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


@torch.library.custom_op("clearhead_tests::attend", mutates_args=())
def by_custom_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plainly(q, k, v)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of TorchScript
    by_torchscript = torch.jit.script(plainly)


def by_numpy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).exp().numpy()
    return torch.from_numpy(weights / weights.sum(-1, keepdims=True) @ v.numpy())


def by_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v)


def in_another_thread(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(plainly(q, k, v)))
    thread.start()
    thread.join()
    return found[0]


OUT_OF_SIGHT: dict[str, Heads] = {
    "custom operator": by_custom_op,
    "TorchScript": by_torchscript,
    "numpy": by_numpy,
    "linear attention": by_linear_attention,
    "another thread": in_another_thread,
}


class Mixer(nn.Module):
    """Two heads of one text; named like no attention."""

    def __init__(self, *ways: Heads) -> None:
        super().__init__()
        self.projection, self.ways = nn.Linear(16, 48), ways

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return torch.cat([way(q, k, v) for way in self.ways], -1)


class Net(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x)


def fused_then(step: Heads) -> nn.Module:
    """Return a model that attends by the fused kernel where it reads more than one token, else by `step`."""

    def either(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v) if q.shape[2] > 1 else step(q, k, v)

    return Net(Mixer(either))


def said(seen: Recording) -> list[tuple[str, str, str]]:
    return [(one.name, one.reason, one.how_often) for one in seen.unseen]


@torch.no_grad()
@pytest.mark.parametrize("how", OUT_OF_SIGHT)
def test_later_forwards_of_a_module_that_was_seen_once_are_named(how: str, tmp_path: Path) -> None:
    model, x = fused_then(OUT_OF_SIGHT[how]), torch.randn(1, 4, 16)
    with watch(model) as seen:
        for n in (4, 1, 4, 1, 1):
            model(x[:, :n])
    assert [layer.calls for layer in seen.layers] == [2]
    assert said(seen) == [("mixer", UNSEEN, "in forwards 1, 3 and 4 of 5")]
    assert "not seen: 1, in .unseen" in repr(seen)
    seen.save(tmp_path / "run.seen")
    assert open_recording(tmp_path / "run.seen").unseen == seen.unseen


@torch.no_grad()
@pytest.mark.parametrize("how", OUT_OF_SIGHT)
def test_an_edit_says_which_forwards_it_did_not_change(how: str) -> None:
    model, x = fused_then(OUT_OF_SIGHT[how]), torch.randn(1, 4, 16)
    with edit(model) as change:
        model(x[:, :1])
        change.switch_off("mixer")
        change.switch_off(0, 1)
        for n in (4, 1):
            model(x[:, :n])
        where = f"mixer (Mixer): {UNSEEN} (in forward 2 of 3)"
    assert change.unused == ()
    assert change.notes == [
        f"switch_off(layer='mixer') changed nothing where attention was not seen: {where}",
        f"switch_off(layer=0, head=1) changed nothing where attention was not seen: {where}",
    ]


def averaged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1).mean(1, True) @ v


AVERAGED = (
    "attention by hand that cannot be told exactly: only some of its weights met these values, or the same met several"
)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_what_is_refused_again_and_again_is_named_once_with_how_often(n: int) -> None:
    model = Net(Mixer(*[averaged] * n))
    with watch(model) as seen:
        model(torch.randn(1, 5, 16))
    assert said(seen) == [("mixer", AVERAGED, f"{n} times" if n > 1 else "")]
    assert AVERAGED in repr(seen)


@pytest.mark.parametrize(
    ("ways", "layer", "refused"), [([averaged, plainly], "mixer#2", "mixer"), ([plainly, averaged], "mixer", "mixer#2")]
)
def test_a_refused_call_is_named_beside_another_of_its_module_that_was_seen(
    ways: list[Heads], layer: str, refused: str
) -> None:
    model = Net(Mixer(*ways))
    with watch(model) as seen:
        model(torch.randn(1, 5, 16))
    assert [one.name for one in seen.layers] == [layer]
    assert said(seen) == [(refused, AVERAGED, "")]
    with pytest.raises(Exception, match=r"switch_off.* \(Mixer\): attention by hand"), edit(model) as change:
        change.switch_off(refused)
        model(torch.randn(1, 5, 16))


def test_a_refusal_is_named_beside_attention_of_a_module_inside() -> None:
    class Both(Mixer):
        def __init__(self) -> None:
            super().__init__(averaged)
            self.local = Mixer(plainly)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.local(x).transpose(1, 2).flatten(2))

    model = Net(Both())
    with watch(model) as seen:
        model(torch.randn(1, 5, 16))
    assert [one.name for one in seen.layers] == ["mixer.local"]
    assert said(seen) == [("mixer", AVERAGED, "")]


def test_a_second_run_in_another_thread_is_named() -> None:
    model, x = Net(Mixer(plainly)), torch.randn(1, 5, 16)
    with watch(model) as seen:
        model(x)
        for _ in range(2):
            thread = threading.Thread(target=model, args=(x,))
            thread.start()
            thread.join()
    assert [(one.name, one.kind, one.how_often) for one in seen.unseen] == [("", "Net", "2 times")]
    assert seen.unseen[0].reason == "it ran in another thread than the one that watches"
    assert len(seen.forwards) == seen.n_forwards == 1


def test_a_forward_that_failed_before_it_attended_is_not_named() -> None:
    class Fails(Mixer):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] > 4:
                raise ValueError("too long")
            return super().forward(x)

    model = Net(Fails(plainly))
    with watch(model) as seen:
        model(torch.randn(1, 4, 16))
        with pytest.raises(ValueError, match="too long"):
            model(torch.randn(1, 5, 16))
        model(torch.randn(1, 4, 16))
    assert seen.unseen == () and seen.layers[0].calls == 2


def test_layers_that_backward_runs_again_are_neither_forwards_nor_unseen() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = Mixer(F.scaled_dot_product_attention)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.mixer, x, use_reentrant=False)

    model = Checkpointed()
    with watch(model) as seen:
        model(torch.randn(1, 5, 16)).sum().backward()
    assert (seen.unseen, seen.n_forwards, seen.layers[0].calls) == ((), 1, 1)


def test_an_edit_reaches_layers_that_backward_runs_again_in_another_thread() -> None:
    class Checkpointed(Net):
        again = True

        def forward(self, x: Tensor) -> Tensor:
            checkpoint = torch.utils.checkpoint.checkpoint
            return checkpoint(self.mixer, x, use_reentrant=False) if self.again else self.mixer(x)

    model, x = Checkpointed(Mixer(F.scaled_dot_product_attention)), torch.randn(1, 5, 16)
    gradients = []
    for again in (False, True):
        model.zero_grad()
        model.again = again
        with edit(model) as change:
            change.switch_off(0, 1)
            thread = threading.Thread(target=model(x).square().sum().backward)
            thread.start()
            thread.join()
        assert change.notes == []
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_attention_beside_the_watched_model_is_not_taken_for_a_module_of_it() -> None:
    q = torch.randn(1, 2, 3, 4)
    with watch(Net(Mixer(plainly))) as seen:
        F.scaled_dot_product_attention(q, q, q)
    assert [str(one) for one in seen.unseen] == ["1 fused call came from outside the watched model"]


def test_numbers_are_said_in_spans() -> None:
    assert [spans(x) for x in ([4], [0, 1], [0, 2, 3, 4, 9], [1, 2, 3])] == [
        "4",
        "0 and 1",
        "0, 2 to 4 and 9",
        "1 to 3",
    ]
