"""Facts about labelled pictures in memory: every form of file says the same, and a file that is not so is named."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clearhead.data.images import ImageProcessor
from clearhead.data.pictures import Pictures, read_idx, read_pictures
from clearhead.errors import InputError

LABELS = ("cat", "dog", "eel")
GREY = ImageProcessor(resize=(6, 8), mean=(0.5,), std=(0.5,), n_channels=1)
COLOUR = ImageProcessor(resize=(6, 8))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.randint(0, 256, (5, 6, 8)).astype(np.uint8)


NUMBERS = np.array([0, 2, 1, 2, 0], np.uint8)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_every_form_of_file_gives_the_same_pictures(images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(NUMBERS)))
    (tmp_path / "images.idx3").write_bytes(idx(images))
    (tmp_path / "labels.idx1").write_bytes(idx(NUMBERS))
    np.savez(tmp_path / "labels.npz", images=images, labels=NUMBERS)
    np.savez_compressed(tmp_path / "targets.npz", images=images, targets=np.eye(3)[NUMBERS])
    for n, (image, number) in enumerate(zip(images, NUMBERS)):
        (tmp_path / "folder" / LABELS[number]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / LABELS[number] / f"{n}.png")
    expected = torch.from_numpy(images).unsqueeze(1)
    for name in ("train-images-idx3-ubyte.gz", "images.idx3", "labels.npz", "targets.npz"):
        read = read_pictures(tmp_path / name, GREY, LABELS)
        assert torch.equal(read.pixels, expected)
        assert read.targets.argmax(-1).tolist() == NUMBERS.tolist() and read.targets.sum() == 5
    by_label = np.argsort(NUMBERS, kind="stable")
    read = read_pictures(tmp_path / "folder", GREY, LABELS)
    assert torch.equal(read.pixels, expected[by_label])
    assert read.targets.argmax(-1).tolist() == NUMBERS[by_label].tolist()


def test_pictures_are_framed_as_the_model_wants_them(images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=images, labels=NUMBERS)
    larger = ImageProcessor(resize=(12, 16), crop=(9, 9))
    read = read_pictures(tmp_path / "x.npz", larger, LABELS)
    assert read.pixels.shape == (5, 3, 9, 9) and read.pixels.dtype == torch.uint8
    assert torch.equal(larger.normalise(read.pixels[3]), larger.read(torch.from_numpy(images[3])))
    colours = np.random.randint(0, 256, (2, 6, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "c.npz", images=colours, labels=NUMBERS[:2])
    assert torch.equal(
        read_pictures(tmp_path / "c.npz", COLOUR, LABELS).pixels, torch.from_numpy(colours).permute(0, 3, 1, 2)
    )


def test_pictures_of_the_size_of_the_crop_are_enlarged_first_like_any_others(
    images: np.ndarray, tmp_path: Path
) -> None:
    height, width = images.shape[1:]
    np.savez(tmp_path / "x.npz", images=images, labels=NUMBERS.astype(">u2"))
    processor = ImageProcessor(resize=(height + 4, width + 4), crop=(height, width))
    read = read_pictures(tmp_path / "x.npz", processor, LABELS)
    assert torch.equal(read.pixels[2], processor.frame(torch.from_numpy(images[2])))
    assert not torch.equal(read.pixels[2], torch.from_numpy(images[2]).expand(3, -1, -1))
    np.savez(tmp_path / "names.npz", images=images, labels=np.array([LABELS[n] for n in NUMBERS]))
    with pytest.raises(InputError, match="expected numbers, got <U"):
        read_pictures(tmp_path / "names.npz", processor, LABELS)


def test_soft_targets_stay_soft_and_a_batch_is_the_rows_asked_for(images: np.ndarray, tmp_path: Path) -> None:
    targets = np.random.dirichlet(np.ones(3), 5)
    np.savez(tmp_path / "x.npz", images=images, targets=targets)
    read = read_pictures(tmp_path / "x.npz", GREY, LABELS)
    torch.testing.assert_close(read.targets, torch.from_numpy(targets).float())
    batch = read.batch([4, 1])
    assert torch.equal(batch.pixels, read.pixels[[4, 1]]) and torch.equal(batch.targets, read.targets[[4, 1]])
    assert batch.n_items == 2 and list(read.lengths) == [1] * 5


def test_an_idx_file_has_any_number_of_axes(tmp_path: Path) -> None:
    array = np.random.randint(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    (tmp_path / "x.idx4").write_bytes(idx(array))
    assert torch.equal(read_idx(tmp_path / "x.idx4"), torch.from_numpy(array))


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"", "expected an idx file of bytes"),
        (idx(np.zeros((5, 6, 8), np.uint8))[:-1], "expected an idx file of bytes"),
        (b"\0\0\x0d\x01" + b"\0\0\0\x01" + b"\0" * 4, "expected an idx file of bytes"),
        (gzip.compress(idx(np.zeros((5, 6, 8), np.uint8)))[:-9], "cannot be read"),
        (idx(np.zeros((4, 6, 8), np.uint8)), "4 pictures, but 5 labels"),
    ],
    ids=["empty", "short", "floats", "cut", "fewer"],
)
def test_an_idx_file_that_is_none_is_named(contents: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x-images-idx3").write_bytes(contents)
    (tmp_path / "x-labels-idx1").write_bytes(idx(NUMBERS))
    with pytest.raises(InputError, match=message) as refusal:
        read_pictures(tmp_path / "x-images-idx3", GREY, LABELS)
    assert "x-images-idx3" in str(refusal.value)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"labels": NUMBERS}, "expected arrays images and one of labels and targets, got labels"),
        ({"images": np.zeros((5, 6, 8), np.uint8)}, "got images"),
        ({"images": np.zeros((5, 6, 8)), "labels": NUMBERS}, "images: expected bytes"),
        ({"images": np.zeros((5, 6, 8), np.uint8), "labels": NUMBERS + 1}, "whole numbers from 0 to 2"),
        ({"images": np.zeros((5, 6, 8), np.uint8), "targets": np.ones((5, 2))}, "expected 3 numbers a picture"),
        ({"images": np.zeros((5, 6, 8), np.uint8), "targets": np.ones((5, 3))}, "probabilities that sum to 1"),
        ({"images": np.array([None]), "labels": NUMBERS}, "cannot be read"),
    ],
)
def test_arrays_that_are_not_as_expected_are_refused(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_pictures(tmp_path / "x.npz", GREY, LABELS)


def test_folders_and_other_files_that_do_not_fit_are_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one subfolder for each of cat, dog, eel"):
        read_pictures(tmp_path, GREY, LABELS)
    (tmp_path / "cats").mkdir()
    with pytest.raises(InputError, match="cats: no label has that name; did you mean 'cat'"):
        read_pictures(tmp_path, GREY, LABELS)
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match=r"expected a folder with one subfolder a label, an idx3 file or a \.npz file"):
        read_pictures(tmp_path / "x.txt", GREY, LABELS)
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"x\.npz cannot be read: a single array"):
        read_pictures(tmp_path / "x.npz", GREY, LABELS)
    np.savez(tmp_path / "x.npz", images=np.zeros((0, 4, 4), np.uint8), targets=np.zeros((0, 3)))
    with pytest.raises(InputError, match=r"x\.npz holds no picture"):
        read_pictures(tmp_path / "x.npz", GREY, LABELS)
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be read"):
        read_pictures(tmp_path / "x.npz", GREY, LABELS)
    (tmp_path / "cats").rename(tmp_path / "cat")
    for n, image in enumerate((images[0], images[0][:3])):
        Image.fromarray(image).save(tmp_path / "cat" / f"{n}.png")
    with pytest.raises(InputError, match="pictures of different sizes"):
        read_pictures(tmp_path, ImageProcessor(resize=None, mean=(0.5,), std=(0.5,), n_channels=1), LABELS)
    assert isinstance(read_pictures(tmp_path, GREY, LABELS), Pictures)
