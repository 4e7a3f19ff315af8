"""What the command line puts off at its start is real when somebody needs it, and nobody else's process is touched.

Every fact is shown in a process that has not imported torch yet.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clearhead.checkpoints import save
from clearhead.cli.startup import PUT_OFF, TESTED, torch_version
from clearhead.data.tokenizer import Tokenizer
from clearhead.models.bert import Bert, BertConfig, BertForSequenceClassification
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM, RotaryConfig
from clearhead.models.vit import ViT, ViTConfig

HASTEN = "import sys, types\nfrom clearhead.cli import startup\nstartup.hasten()\nimport torch\n"
WAITING = "[name for name in startup.PUT_OFF if isinstance(sys.modules.get(name), startup.StandIn)]"
NOTHING_YET = f"assert {WAITING} == list(startup.PUT_OFF)\n"
ALL_REAL = (
    f"assert {WAITING} == []\n"
    "assert all(sys.modules[name].__file__ for name in startup.PUT_OFF)\n"
    "assert torch.export is sys.modules['torch.export'] and torch.export.export\n"
    "assert torch._meta_registrations is sys.modules['torch._meta_registrations']\n"
)

# What somebody may need -> code that fails, or computes something else, without the real modules.
NEEDS = {
    "torch.compile": "f = torch.compile(torch.cos, backend='eager', fullgraph=True)\nassert f(torch.zeros(1)) == 1",
    "torch.export": "p = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))\n"
    "assert type(p) is sys.modules['torch.export'].ExportedProgram",
    "a name imported from torch.export": "from torch.export import Dim\nassert Dim('n')",
    "a module of torch.export": "import torch.export.graph_signature as g\nassert g.InputKind",
    "a shape rule by its name": "from torch._meta_registrations import meta_conv\nassert callable(meta_conv)",
    "fake tensors": "from torch._subclasses.fake_tensor import FakeTensorMode\nwith FakeTensorMode():\n"
    "    y = torch.nn.Conv2d(1, 2, 3)(torch.empty(1, 1, 8, 8))\n    z = torch.linalg.eigh(torch.empty(3, 3))[0]\n"
    "assert (y.shape, z.shape) == ((1, 2, 6, 6), (3,))",
    "a traced graph": "from torch.fx.experimental.proxy_tensor import make_fx\n"
    "g = make_fx(torch.nn.functional.gelu, tracing_mode='symbolic')(torch.ones(3))\n"
    "assert g(torch.zeros(3)).sum() == 0",
    "an optimizer": "x = torch.nn.Parameter(torch.ones(1))\nx.square().backward()\n"
    "torch.optim.AdamW([x]).step()\nassert x < 1",
    "an operator of one's own": "@torch.library.custom_op('mine::double', mutates_args=())\n"
    "def double(x: torch.Tensor) -> torch.Tensor:\n    return 2 * x\n"
    "double.register_fake(torch.empty_like)\n"
    "assert set(torch.library.opcheck(double, (torch.ones(2),)).values()) == {'SUCCESS'}",
}


def run(code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run `code` as a process of its own; a test fails with what it said if it fails."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random classifier."""
    import tokenizers

    source, path = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("checkpoints") / "tiny"
    word_pieces = tokenizers.BertWordPieceTokenizer(lowercase=True)
    word_pieces.train_from_iterator(["not too shabby"], vocab_size=60, min_frequency=1, show_progress=False)
    word_pieces.save_model(str(source))
    config = BertConfig(
        vocab_size=word_pieces.get_vocab_size(), d_model=32, n_heads=4, n_layers=1, d_ff=48, labels=("a", "b")
    )
    save(BertForSequenceClassification(config), path, tokenizer=Tokenizer.load(source))
    return path


def test_the_torch_that_is_here_is_tested() -> None:
    # Another one is left alone, and commands start slower. To move on: run these tests with it, add it to TESTED.
    assert torch_version() in TESTED
    assert torch.__version__.startswith(f"{torch_version()}.")


@pytest.mark.parametrize("need", NEEDS)
def test_what_was_put_off_is_real_for_whoever_needs_it(need: str) -> None:
    run(HASTEN + NOTHING_YET + NEEDS[need] + "\n" + ALL_REAL)


def test_numbers_are_computed_and_differentiated_without_what_was_put_off() -> None:
    # Not everything torch can do: that arithmetic never asks. What asks is in NEEDS.
    run(
        HASTEN + "x = torch.randn(2, 3, 8, requires_grad=True)\n"
        "model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\n"
        "model(x).square().sum().backward()\n"
        "assert x.grad.abs().sum() > 0\n" + NOTHING_YET
    )


@pytest.mark.parametrize("command", ["classify", "derive", "see"])
def test_a_command_imports_nothing_that_its_answer_does_not_need(command: str, folder: Path) -> None:
    needless = ["transformers", "huggingface_hub", "torch._decomp", "torch._refs", "torch._dynamo"]
    needless += ["rich"] if command == "classify" else []
    code = (
        "import sys\nfrom clearhead.cli import main\nassert main() == 0\nfrom clearhead.cli import startup\n"
        f"assert not set({needless!r}) & set(sys.modules)\n"
    )
    run(code + NOTHING_YET, command, "not shabby", "--model", folder)


def test_a_model_of_every_kind_is_loaded_without_what_was_put_off(tmp_path: Path) -> None:
    bert = {"vocab_size": 99, "d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 48, "max_len": 16}
    roberta = {**bert, "pad_id": 1, "first_position": 2, "n_segments": 1}
    gpt = {"norm": "rms", "feed_forward": "gated", "activation": "silu", "biases": "none", "rotary": RotaryConfig()}
    halves = {"vocab_size": 99, "d_model": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1, "d_ff": 48}
    models = {
        "bert": Bert(BertConfig(**bert)),
        "roberta": Bert(BertConfig(**roberta)),
        "distilbert": Bert(BertConfig(**bert, n_segments=0, pooler=None)),
        "gpt2": GPTForCausalLM(GPTConfig(**bert)),
        "llama": GPTForCausalLM(GPTConfig(**{**bert, **gpt})),
        "vit": ViT(ViTConfig(image_size=(8, 8), patch_size=4, d_model=32, n_heads=2, n_layers=1, d_ff=48)),
        "marian": EncoderDecoder(EncoderDecoderConfig(**halves)),
    }
    for family, model in models.items():
        save(model, tmp_path / family, family=family)
    load = f"from clearhead.checkpoints import load\nfor family in {list(models)}:\n    load(sys.argv[1] + family)\n"
    run(HASTEN + load + NOTHING_YET, f"{tmp_path}/")


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        ("from clearhead.cli import main\nmain(['models', '--json'])", []),  # a program that calls it
        ("from clearhead.cli import main\nmain()", ["train", "nowhere.toml"]),  # may compile
        ("import clearhead; clearhead.attend", []),  # the library
    ],
)
def test_programs_training_and_the_library_are_left_as_they_are(code: str, argv: list[str]) -> None:
    before = "import gc, sys\nbefore = gc.get_threshold(), list(sys.meta_path)\n"
    after = "\nimport torch\nassert (gc.get_threshold(), sys.meta_path) == before\nassert torch.export.__file__"
    run(before + code + after, *argv)


@pytest.mark.parametrize("version", ["__version__ = '9.9.0'", "version = 2", None])
def test_a_torch_that_nobody_tested_is_imported_as_it_is(version: str | None, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import torch.export\n")
    (tmp_path / "torch" / "export.py").write_text("real = True\n")
    if version is not None:
        (tmp_path / "torch" / "version.py").write_text(version)
    run(
        "import sys\nsys.path.insert(0, sys.argv[1])\nfinders = list(sys.meta_path)\n"
        "from clearhead.cli import startup\nstartup.hasten()\nimport torch\n"
        "assert sys.meta_path == finders and torch.export.__dict__['real']",
        tmp_path,
    )


def test_a_module_that_torch_gave_up_is_not_missed(tmp_path: Path) -> None:
    # A tested version built without some part: only what torch itself imports is put off, and fetched again.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from torch import export\n")
    (tmp_path / "torch" / "export.py").write_text("real = True\n")
    (tmp_path / "torch" / "more.py").write_text("")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '{TESTED[0]}.0'\n")
    run(
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from clearhead.cli import startup\nstartup.hasten()\nimport torch\n"
        "assert isinstance(torch.export, startup.StandIn)\nimport torch.more\n"
        f"assert torch.export.__dict__['real'] and not set({PUT_OFF[:2]!r}) & set(sys.modules)",
        tmp_path,
    )
