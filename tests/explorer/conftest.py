"""What the tests of the explorer ask about: one scene of each kind of shipped model, made once."""

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from clearhead.cli.opening import open_for
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.runner import Runner
from clearhead.explorer.scene import Scene

TEXT = "attention isn't too shabby"
NAMES = ("sentiment", "novels", "pictures", "pronounce")


@pytest.fixture(scope="session")
def runner() -> Runner:
    return Runner(NAMES, lambda name: open_for("explore", name))


@pytest.fixture(scope="session")
def scenes(runner: Runner) -> dict[str, Scene]:
    noise = torch.rand(3, 56, 84, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray((noise * 255).byte().permute(1, 2, 0).numpy())
    return {
        "sentiment": runner.read("sentiment", TEXT),
        "novels": runner.read("novels", "It was the best of times,\nit was the worst of times; " * 20),
        "pictures": runner.read("pictures", picture, title="noise"),
        "pronounce": runner.read("pronounce", "attention"),
    }


@pytest.fixture
def exploration(scenes: dict[str, Scene], runner: Runner) -> Iterator[Exploration]:
    yield Exploration(scenes.values(), runner)
