"""What was recorded comes back from its file to the last bit; a file not to be trusted is refused with a reason."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import Recording, open_recording, watch
from clearhead.seeing.recordings import store


@pytest.fixture
def bert() -> Bert:
    return Bert(BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=64)).eval()


@pytest.fixture
def seen(bert: Bert) -> Recording:
    with torch.no_grad(), watch(bert) as seen:
        bert(torch.randint(0, 50, (2, 9)), torch.tensor([9, 4]))
    return seen


NUMBERS = "scale heads kv_of n_heads n_kv_heads dropout softcap n_asked forward".split()


def same(one: Recording, other: Recording) -> None:
    """Check that two recordings hold the same numbers and say the same of themselves."""
    assert one.layers == other.layers
    assert (one.unseen, one.notes, one.forwards) == (other.unseen, other.notes, other.forwards)
    assert one.nbytes == other.nbytes
    for layer, calls in one.calls.items():
        for mine, theirs in zip(calls, other.calls[layer], strict=True):
            assert mine.tensors.keys() == theirs.tensors.keys()
            assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in mine.tensors.items())
            assert mine.rule.same(theirs.rule)
            for name in NUMBERS:
                assert getattr(mine, name) == getattr(theirs, name)


def test_a_recording_comes_back_as_it_was(seen: Recording, tmp_path: Path) -> None:
    seen.save(tmp_path / "run.seen", words=list("abcdefghi"))
    back = open_recording(tmp_path / "run.seen", verify=True)
    same(seen, back)
    assert torch.equal(back.map(2, 3, batch=1), seen.map(2, 3, batch=1))
    assert torch.equal(back.entropy(1), seen.entropy(1))
    assert back.words == list("abcdefghi")
    assert os.listdir(tmp_path) == ["run.seen"]


def test_words_of_a_text_read_step_by_step_are_those_of_all_steps(tmp_path: Path) -> None:
    model = Masked()
    with watch(model) as seen:
        for n_queries, n_keys in ((5, 5), (1, 3), (1, 3)):  # a cache that keeps three
            q, k = torch.randn(1, 2, n_queries, 4), torch.randn(1, 2, n_keys, 4)
            model(q, k, torch.ones(n_queries, n_keys).bool())
    seen.save(tmp_path / "run.seen", words=list("abcdefg"))
    assert open_recording(tmp_path / "run.seen").words == list("abcdefg")


@pytest.mark.parametrize("words", [["a"], ["a"] * 10, []])
def test_words_are_one_for_each_position(seen: Recording, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(WatchError, match=f"{len(words)} words? for a recording of 9 positions: give one for each"):
        seen.save(tmp_path / "run.seen", words=words)
    assert os.listdir(tmp_path) == []


class Masked(nn.Module):
    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_kind_of_mask_and_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, causal = Masked(), torch.ones(7, 7).bool().tril()
    documents = torch.arange(7) // 3
    masks = [causal, torch.rand(7, 7) < 0.5, torch.randn(1, 3, 7, 7, dtype=dtype), documents == documents[:, None]]
    masks.append(torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool().expand(7, 7))
    with watch(model) as seen, watch(model, rows=[1, 5], heads=[2], values=True, outputs=True) as some:
        for mask in masks:
            model(torch.randn(2, 3, 7, 8, dtype=dtype), torch.randn(2, 3, 7, 8, dtype=dtype), mask)
    for recording in (seen, some):
        recording.save(tmp_path / "run.seen")
        same(recording, open_recording(tmp_path / "run.seen", verify=True))


@pytest.mark.parametrize("to", ["file", "disk"])
def test_what_is_streamed_to_disk_is_what_would_have_been_in_memory(to: str, bert: Bert, tmp_path: Path) -> None:
    place = tmp_path / "run.seen" if to == "file" else "disk"
    tokens, lengths = torch.randint(0, 50, (2, 9)), torch.tensor([9, 4])
    with torch.no_grad(), watch(bert) as here, watch(bert, to=place) as there:
        bert(tokens, lengths)
        assert torch.equal(there.map(0, 0), here.map(0, 0))  # also while it is being written
        bert(tokens[:, :5])
    same(here, there)
    assert os.listdir(tmp_path) == (["run.seen"] if to == "file" else [])
    if to == "file":
        same(here, open_recording(place, verify=True))
    there.save(tmp_path / "again.seen")
    same(here, open_recording(tmp_path / "again.seen", verify=True))


@pytest.mark.parametrize("to", [None, "file"])
def test_keys_of_a_generation_are_in_the_file_once(to: str | None, tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=60, **sizes)).eval()
    with watch(model) as here, watch(model, to=tmp_path / "run.seen" if to else None) as there:
        model.generate(torch.randint(1, 60, (1, 5)), max_new_tokens=60, do_sample=False, eos_token_id=None)
    if to is None:
        there.save(tmp_path / "run.seen")
    back = open_recording(tmp_path / "run.seen", verify=True)
    assert [call.q.shape[2] for call in back.calls[1]] == [5] + 59 * [1]
    assert len({call.k.data_ptr() for call in back.calls[1]}) == 1
    for step in (0, 1, 30, 59):
        assert torch.equal(back.map(1, 2, call=step), here.map(1, 2, call=step))
    largest = max(tensor.numel() for tensor in load_file(tmp_path / "run.seen").values() if tensor.is_floating_point())
    assert largest <= 64 * 32 * 3 // 2  # numbers for 64 positions, and what a buffer may have grown beyond


def test_a_header_that_outgrows_its_place_moves_the_numbers(
    bert: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.File.__init__, "__defaults__", (None, 4096))
    with torch.no_grad(), watch(bert) as here, watch(bert, to=tmp_path / "run.seen") as there:
        for _ in range(10):
            bert(torch.randint(0, 50, (1, 9)))
    same(here, there)
    same(here, open_recording(tmp_path / "run.seen", verify=True))


def test_numbers_are_read_when_they_are_needed_and_not_before(tmp_path: Path) -> None:
    model, x = Masked(), torch.randn(1, 8, 40_000, 64)
    with watch(model, to=tmp_path / "run.seen"):
        model(x[:, :, :20], x, None)
    size = (tmp_path / "run.seen").stat().st_size
    assert size > 80e6
    code = (
        "import sys; from pathlib import Path; from clearhead.seeing import open_recording\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "before = resident(); seen = open_recording(sys.argv[1])\n"
        "seen.map(0, 0, cols=range(256)); print(resident() - before)"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to see what is in memory")
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run.seen"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < size / 2


# ---------------------------------------------------------------- files that cannot be trusted


def edit_header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Return what changes the header of a file and leaves it well formed."""

    def changed(whole: bytes) -> bytes:
        start = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:start])
        change(header["__metadata__"])
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + whole[start:]

    return changed


DAMAGED = {
    "empty": (lambda whole: b"", "cut short or damaged"),
    "header cut": (lambda whole: whole[:100], "cut short or damaged"),
    "last byte lost": (lambda whole: whole[:-1], "cut short or damaged"),
    "byte too many": (lambda whole: whole + b"x", "cut short or damaged"),
    "other format": (lambda whole: b"PK\x03\x04" + whole, "cut short or damaged"),
    "header": (lambda whole: whole[:8] + b"x" + whole[9:], "cut short or damaged"),
    "newer": (edit_header(lambda meta: meta.update(version="3")), "has version 3 .*, this clearhead reads up to 2"),
    "no version": (edit_header(lambda meta: meta.pop("version")), "has version none"),
    "not ours": (edit_header(lambda meta: meta.update(format="other")), "but no recording"),
    "words": (edit_header(lambda meta: meta.update(recording=meta["recording"] + " ")), "is damaged: what its"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_files_are_refused_with_the_reason(seen: Recording, tmp_path: Path, how: str) -> None:
    (damage, said), path = DAMAGED[how], tmp_path / "run.seen"
    seen.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WatchError, match=said):
        open_recording(path)


CONTRADICTIONS = {
    "heads": lambda said: said["calls"][0].update(heads=[0, 1, 2, 9]),
    "keys of heads": lambda said: said["calls"][0].update(kv_of=[0, 1, 2, 4]),
    "rule": lambda said: said["calls"][0].update(rule=7),
    "layer": lambda said: said["calls"][0].update(layer=7),
    "no queries": lambda said: said["calls"][0]["tensors"].pop("q"),
    "wrong keys": lambda said: said["calls"][0]["tensors"].update(k=said["calls"][0]["tensors"]["lse"]),
    "too few": lambda said: said["calls"][0]["tensors"]["q"].update(shape=[2, 4, 99, 8]),
    "unknown": lambda said: said["calls"][0]["tensors"].update(other=said["calls"][0]["tensors"]["q"]),
    "no names": lambda said: said.pop("names"),
    "no number": lambda said: said["calls"][0].update(scale=None),
    "no softcap": lambda said: said["calls"][0].update(softcap=0),
    "fewer asked": lambda said: said["calls"][0].update(n_asked=3),
    "rows unnamed": lambda said: said["calls"][0].update(n_asked=99),
}


@pytest.mark.parametrize("checksums", ['["0": 1}', "[]", '{"x": 1}'])
def test_damaged_checksums_are_damage(seen: Recording, tmp_path: Path, checksums: str) -> None:
    path = tmp_path / "run.seen"
    seen.save(path)
    path.write_bytes(edit_header(lambda meta: meta.update(checksums=checksums))(path.read_bytes()))
    open_recording(path)
    with pytest.raises(WatchError, match="its checksums are not those that were written"):
        open_recording(path, verify=True)


@pytest.mark.parametrize("how", CONTRADICTIONS)
def test_files_that_contradict_themselves_are_refused(seen: Recording, tmp_path: Path, how: str) -> None:
    import zlib

    def changed(meta: dict[str, Any]) -> None:
        said = json.loads(meta["recording"])
        CONTRADICTIONS[how](said)
        meta["recording"] = json.dumps(said)
        meta["check"] = str(zlib.crc32(meta["recording"].encode()))

    path = tmp_path / "run.seen"
    seen.save(path)
    path.write_bytes(edit_header(changed)(path.read_bytes()))
    with pytest.raises(WatchError, match=r"run\.seen is damaged"):
        open_recording(path)


def test_a_flipped_bit_among_the_numbers_is_found_when_looked_for(seen: Recording, tmp_path: Path) -> None:
    path = tmp_path / "run.seen"
    seen.save(path)
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 4
    path.write_bytes(whole)
    open_recording(path)
    with pytest.raises(WatchError, match=r"the numbers of tensor .* are not those that were written"):
        open_recording(path, verify=True)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="is not there"):
        open_recording(tmp_path / "no.seen")
    with pytest.raises(WatchError, match="is a folder"):
        open_recording(tmp_path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(WatchError, match="a safetensors file but no recording"):
        open_recording(tmp_path / "model.safetensors")


def test_a_save_that_fails_leaves_what_was_there(
    seen: Recording, bert: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.seen"
    seen.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(WatchError, match=r"does not fit on the disk: .*No space left"):
        seen.save(path)
    with torch.no_grad(), watch(bert, to=tmp_path / "other.seen") as refused:
        bert(torch.randint(0, 50, (1, 4)))  # runs on
    with pytest.raises(WatchError, match="No space left"):
        refused.map(0, 0)
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WatchError, match="could not be written"):
        seen.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.seen"]


def test_an_empty_recording_is_not_saved(bert: Bert, tmp_path: Path) -> None:
    with watch(bert, to=tmp_path / "streamed.seen") as nothing:
        pass
    with pytest.raises(WatchError, match="run the model inside the with block"):
        nothing.save(tmp_path / "run.seen")
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written_to_are_refused_before_the_run(bert: Bert, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WatchError, match="is a folder"), watch(bert, to=tmp_path):
        pass
    with pytest.raises(WatchError, match="nothing can be written"), watch(bert, to=tmp_path / "file" / "run.seen"):
        pass
