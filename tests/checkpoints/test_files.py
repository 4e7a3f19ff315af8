"""Checkpoint folders: found by name, read with suspicion, written all or not at all."""

import gc
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.checkpoints import files, find, load, save
from clearhead.checkpoints.files import replacing
from clearhead.errors import CheckpointError
from clearhead.json_files import read_json
from clearhead.models.bert import Bert, BertConfig
from published import edit, make, publish

TINY = BertConfig(vocab_size=61, d_model=32, n_heads=4, n_layers=2, d_ff=37, max_len=40)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Return whether two models hold the same bits."""
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


# ---------------------------------------------------------------- finding


def test_a_folder_is_found_by_its_path(tmp_path: Path) -> None:
    assert find(tmp_path) == find(str(tmp_path)) == tmp_path


def test_a_shipped_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "DEFAULTS", tmp_path / "defaults")
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "defaults" / "sentiment"
    save(Bert(TINY), shipped)
    assert find("sentiment") == shipped
    (tmp_path / "sentiment").mkdir()
    assert find("sentiment") == shipped, "a folder of that name without a checkpoint in it is not meant"
    save(Bert(TINY), tmp_path / "sentiment")
    assert find("sentiment") == Path("sentiment")
    with pytest.raises(CheckpointError, match=r"no model 'sentimant': .* did you mean 'sentiment'\?$"):
        find("sentimant")


def test_the_hub_is_read_from_its_cache_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    publish(cached / "snapshots" / ("0" * 40), "BertModel")
    assert isinstance(load("someone/tiny"), Bert)
    with pytest.raises(CheckpointError, match="'someone/else' is not a folder here, and the Hugging Face hub"):
        load("someone/else")


def test_the_hub_is_asked_for_no_pickle_and_no_code() -> None:
    from huggingface_hub.utils import filter_repo_objects

    published = [WEIGHTS, INDEX, "model-00001-of-00002.safetensors", "config.json", "tokenizer.json", "vocab.txt"]
    published += ["generation_config.json", "1_Pooling/config.json"]  # Whisper's languages, how vectors are made
    left = ["pytorch_model.bin", "modeling.py", "tf_model.h5", "onnx/model.onnx", "model.fp16.safetensors", "README.md"]
    assert list(filter_repo_objects(published + left, allow_patterns=files.FETCHED)) == published


@pytest.mark.parametrize("name", ["nothing/here/either", "./nothing", "nothing", "a long text " * 10_000, "\0"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"not a folder, not a name on the .* and does not ship"):
        find(name)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    with pytest.raises(CheckpointError, match="is a file: expected the folder"):
        find(tmp_path / WEIGHTS)


# ---------------------------------------------------------------- reading


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    theirs = make("RobertaForMaskedLM")
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert same(load(tmp_path / "many"), load(tmp_path / "one"))


def test_one_file_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that converting a model of many shards takes the memory of the model and one shard.
    import safetensors

    make("BertModel").save_pretrained(tmp_path, max_shard_size="20KB")
    opened: list[str] = []
    really = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **kw: opened.append(path.name) or really(path, **kw))
    load(tmp_path, dtype=torch.float64)
    n_shards = len(list(tmp_path.glob("model-*.safetensors")))
    assert len(set(opened)) == n_shards and len(opened) <= 2 * n_shards  # once for shapes, once for numbers


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder, index: (folder / sorted(set(index.values()))[0]).unlink(), "is missing, though"),
        (lambda folder, index: index.update(extra=sorted(set(index.values()))[0]), "places tensor 'extra' there"),
        (
            lambda folder, index: index.update(extra="../model.safetensors"),
            r"\['extra'\]: expected the name of a file in this",
        ),
        (lambda folder, index: index.pop(sorted(index)[0]), "does not place there"),
        (lambda folder, index: index.clear(), "expected a weight_map"),
    ],
)
def test_a_wrong_index_is_refused(spoil, said: str, tmp_path: Path) -> None:
    make("BertModel").save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX).read_text())
    spoil(tmp_path, index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_other_precisions_load_and_go_round(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = make("DistilBertForSequenceClassification").to(dtype)
    theirs.save_pretrained(tmp_path / "old")
    assert {p.dtype for p in load(tmp_path / "old").parameters()} == {torch.float32}
    kept = load(tmp_path / "old", dtype=None)
    assert {p.dtype for p in kept.parameters()} == {dtype}
    save(kept, tmp_path / "kept")
    save(load(tmp_path / "old", dtype=torch.float64), tmp_path / "down", dtype=dtype)
    for folder in ("kept", "down"):
        assert (tmp_path / folder / WEIGHTS).read_bytes() == (tmp_path / "old" / WEIGHTS).read_bytes()
        assert read_json(tmp_path / folder / "config.json") == read_json(tmp_path / "old" / "config.json")


def test_saving_in_half_precision_says_so_in_the_config(tmp_path: Path) -> None:
    model = Bert(TINY)
    save(model, tmp_path, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.float16}
    assert read_json(tmp_path / "config.json")["dtype"] == "float16"
    assert same(load(tmp_path), model.half().float())


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    publish(tmp_path, "BertForMaskedLM")
    before = torch.get_rng_state()
    model = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training and all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_loading_collects_no_garbage_and_puts_the_collector_back(tmp_path: Path) -> None:
    # One collection looks at all that importing torch left, three times as long as it takes to open 500 MB.
    make("BertModel").save_pretrained(tmp_path)
    collections: list[str] = []

    def count(phase: str, info: dict[str, int]) -> None:
        collections.append(phase)

    every = gc.get_threshold()
    gc.callbacks.append(count)
    try:
        gc.set_threshold(10)
        load(tmp_path)
        during = len(collections)
        assert gc.isenabled()
        with pytest.raises(CheckpointError):
            load(tmp_path / "nothing")
        assert gc.isenabled()
        gc.disable()
        load(tmp_path)
        assert not gc.isenabled()
    finally:
        gc.callbacks.remove(count)
        gc.set_threshold(*every)
        gc.enable()
    assert during <= 4  # a start and a stop, before loading and after it


def test_training_what_was_loaded_leaves_the_file_alone(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    before = (tmp_path / WEIGHTS).read_bytes()
    model = load(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / WEIGHTS).read_bytes() == before
    save(model, tmp_path)
    assert same(load(tmp_path), model)


@pytest.mark.parametrize("keep", [0, 7, 100, -1, -1000])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is not a whole safetensors file"):
        load(tmp_path)


def test_every_spoilt_header_is_refused_by_name(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    whole = (tmp_path / WEIGHTS).read_bytes()
    generator = torch.Generator().manual_seed(0)
    length = int.from_bytes(whole[:8], "little")
    loaded = 0
    for _ in range(200):
        spoilt = bytearray(whole)
        spoilt[int(torch.randint(8 + length, (), generator=generator))] ^= 1 << int(
            torch.randint(8, (), generator=generator)
        )
        (tmp_path / WEIGHTS).write_bytes(spoilt)
        try:
            load(tmp_path)
            loaded += 1  # a flipped bit in the spaces that pad the header, or in its metadata
        except CheckpointError:
            pass
    assert loaded < 10


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n")
    with pytest.raises(CheckpointError, match="run `git lfs pull`"):
        load(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    publish(tmp_path, "BertModel")
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"only pytorch_model.bin, a pickle.*save_pretrained"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_the_advice_on_pickles_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make("BertForSequenceClassification")
    theirs.save_pretrained(tmp_path / "expected")
    shutil.copytree(tmp_path / "expected", tmp_path / "old")
    (tmp_path / "old" / WEIGHTS).unlink()
    torch.save(theirs.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "old")
    _, _, code, folder = shlex.split(str(caught.value).partition("convert it once: ")[2])
    monkeypatch.setattr(sys, "argv", ["-c", folder])
    exec(code)
    assert same(load(tmp_path / "old"), load(tmp_path / "expected"))


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"layer_norm_eps": NaN}', "holds NaN"),
        ('{"layer_norm_eps": -Infinity}', "holds -Infinity"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"model_type": "bert"', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\udcff", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_config_that_is_no_config_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


def test_a_folder_without_config_or_weights_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load(tmp_path)
    publish(tmp_path, "BertModel")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {WEIGHTS}: a checkpoint folder has"):
        load(tmp_path)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert.embeddings.LayerNorm.bias", "bert.encoder.layer.1.attention.self.value.weight"])
def test_a_weight_that_is_no_number_is_named(name: str, dtype: torch.dtype, broken: float, tmp_path: Path) -> None:
    publish(tmp_path, "BertForSequenceClassification")
    tensors = {key: x.to(dtype) for key, x in load_file(tmp_path / "model.safetensors").items()}
    tensors[name].flatten()[3] = broken
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = rf"model\.safetensors: tensor '{re.escape(name)}' holds numbers that are NaN or infinite, 1 of"
    for frozen in (False, True):
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path, frozen=frozen)


def test_large_finite_weights_are_no_infinity(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    tensors = load_file(tmp_path / "model.safetensors")
    largest = torch.finfo(torch.float32).max
    tensors["encoder.layer.0.intermediate.dense.weight"].fill_(largest)  # their sum is infinite
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert (load(tmp_path).blocks[0].feed_forward.up_proj.weight == largest).all()


def test_what_failed_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        def save(self, folder: Path) -> None:
            raise RuntimeError("no tokenizer today")

    with pytest.raises(RuntimeError, match="no tokenizer today"):
        save(Bert(TINY), tmp_path / "new", tokenizer=Broken())
    assert list(tmp_path.iterdir()) == []
    old = Bert(TINY)
    save(old, tmp_path / "old")
    with pytest.raises(RuntimeError, match="no tokenizer today"):
        save(Bert(TINY), tmp_path / "old", tokenizer=Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and same(load(tmp_path / "old"), old)


def test_saving_over_a_checkpoint_keeps_other_files(tmp_path: Path) -> None:
    save(Bert(TINY), tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "state").mkdir()
    model = Bert(TINY)
    save(model, tmp_path)
    assert same(load(tmp_path), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl", WEIGHTS, "state"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file: expected a folder to save in"):
        save(Bert(TINY), tmp_path / "file")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(Bert(TINY), tmp_path / "file" / "below")


SAVER = """
import sys, torch
from dataclasses import replace
from clearhead.checkpoints import load, save
from clearhead.models.bert import Bert, BertConfig

torch.set_num_threads(1)
models = [load(folder) for folder in sys.argv[2:]]
print("ready", flush=True)
while True:
    for model in models:
        save(model, sys.argv[1])
"""


def test_killed_at_any_moment_a_save_leaves_a_whole_checkpoint_or_a_refused_folder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, second = Bert(TINY).eval(), Bert(replace(TINY, norm_eps=1e-6)).eval()
    save(first, tmp_path / "first")
    save(second, tmp_path / "second")
    target = tmp_path / "target"
    for round_ in range(2):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(target), str(tmp_path / "first"), str(tmp_path / "second")],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert saver.stdout is not None and saver.stdout.readline() == b"ready\n"
        while not target.exists():
            assert saver.poll() is None
        torch.randn(100_000 * (round_ + 1)).sort()  # some moments later
        saver.kill()
        saver.communicate()
        try:
            found = load(target)
        except CheckpointError as error:
            assert "holds no config.json" in str(error)
        else:
            assert any(same(found, model) and found.config == model.config for model in (first, second))


@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("norm_eps", [TINY.norm_eps, 1e-6], ids=["same config", "another config"])
def test_one_models_config_is_never_beside_anothers_weights(
    done: int, norm_eps: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Bert(TINY), Bert(replace(TINY, norm_eps=norm_eps))
    save(first, tmp_path)
    really, moved = Path.replace, []

    def move(path: Path, target: Path) -> Path:
        if len(moved) == done:
            raise OSError("the power went")
        moved.append(path.name)
        return really(path, target)

    monkeypatch.setattr(Path, "replace", move)
    with pytest.raises(CheckpointError, match="the power went"):
        save(second, tmp_path)
    if norm_eps == TINY.norm_eps:
        assert same(load(tmp_path), (first, second)[done])
    else:
        with pytest.raises(CheckpointError, match=r"holds no config\.json"):
            load(tmp_path)


def test_what_a_killed_save_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left, others = tmp_path / ".run.0badf00d.partial", tmp_path / ".run.v2.0badf00d.partial"
    left.mkdir()
    others.mkdir()  # is being saved right now by somebody else
    (left / WEIGHTS).touch()
    save(Bert(TINY), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "run"]


def test_permissions_are_those_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with replacing(tmp_path / "new") as partial:
        (partial / "config.json").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_saved_weights_are_safetensors_and_nothing_else(tmp_path: Path) -> None:
    save(Bert(TINY), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.json", WEIGHTS]
    shutil.copytree(tmp_path / "new", tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / WEIGHTS)
    save_file(tensors, tmp_path / "copy" / WEIGHTS, metadata={"format": "pt"})
    assert (tmp_path / "copy" / WEIGHTS).read_bytes() == (tmp_path / "new" / WEIGHTS).read_bytes()


def test_the_tokenizer_is_saved_beside_the_weights(minilm: Path, tmp_path: Path) -> None:
    import transformers

    from clearhead.data.tokenizer import Tokenizer

    save(load(minilm), tmp_path, tokenizer=Tokenizer.load(minilm))
    text = "Attention is not too shabby, naïvely."
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ours == transformers.AutoTokenizer.from_pretrained(minilm)(text)["input_ids"]


def test_a_config_edited_by_hand_is_read_as_edited(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    edit(tmp_path, layer_norm_eps=1e-6)
    assert load(tmp_path).config.norm_eps == 1e-6
