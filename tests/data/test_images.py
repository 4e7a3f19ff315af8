"""Facts about pictures: what a model sees is what it was trained on, and what is no picture is said to be none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clearhead.data.images import ImageProcessor, find_images, is_image, open_image
from clearhead.errors import CheckpointError, InputError

# As published: google/vit-base-patch16-224, facebook/deit-base-distilled-patch16-224, facebook/dinov2-small.
VIT: dict[str, Any] = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": 24,
}
DEIT: dict[str, Any] = {
    "crop_size": 20,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DeiTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 23,
}
DINOV2: dict[str, Any] = {
    "crop_size": {"height": 20, "width": 20},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 25},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", VIT),
    "DeiT": ("DeiT", DEIT),
    "DINOv2": ("Bit", DINOV2),
    "only what the library says": ("ViT", {"image_processor_type": "ViTImageProcessor"}),
    "only what DeiT's says": ("DeiT", {"image_processor_type": "DeiTImageProcessorFast"}),
    "only what BiT's says": ("Bit", {"image_processor_type": "BitImageProcessor"}),
    "height and width": ("ViT", {**VIT, "size": {"height": 19, "width": 31}, "resample": 3}),
    "not resized, cropped larger": ("DeiT", {**DEIT, "do_resize": False, "crop_size": {"height": 60, "width": 70}}),
    "not rescaled": ("ViT", {**VIT, "do_rescale": False}),
    "not normalised": ("ViT", {**VIT, "do_normalize": False}),
    "Lanczos": ("ViT", {**VIT, "resample": 1}),
}
SIZES = [(37, 53), (64, 30), (20, 20)]


def folder_with(words: dict[str, Any], folder: Path, n_channels: int = 3) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(words))
    (folder / "config.json").write_text(json.dumps({"num_channels": n_channels}))
    return folder


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Return a picture with edges and with gradients."""
    rows, columns = np.mgrid[:height, :width]
    channels = [np.random.randint(0, 256, (height, width)), rows * 255 // height, columns * 255 // width]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def theirs(kind: str, words: dict[str, Any], backend: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    if backend == "Pil":
        from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
        from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        classes = {"Bit": BitImageProcessorPil, "DeiT": DeiTImageProcessorPil, "ViT": ViTImageProcessorPil}
        return classes[kind].from_dict(dict(words))
    pytest.importorskip("torchvision", reason="torchvision absent: transformers' default image processors need it")
    return getattr(transformers, f"{kind}ImageProcessor").from_dict(dict(words))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    kind, words = CASES[name]
    ours = ImageProcessor.load(folder_with(words, tmp_path))
    image, step = noise(*size), (255 if not words.get("do_rescale", True) else 1) / min(ours.std) / 255
    seen = ours.read(image)
    expected = torch.as_tensor(theirs(kind, words, "Pil")(image, return_tensors="np")["pixel_values"][0])
    if ours.crop is None or ours.crop < size:  # what is too small, the two of them surround by one pixel more or less
        torch.testing.assert_close(seen, expected.float(), rtol=0, atol=1e-5 * max(1.0, 255 * step / 100))
    if ours.resample == Image.Resampling.LANCZOS and torch.__version__ < "2.13":
        return  # which torchvision leaves to torch; before it, transformers' default processor fails
    default = theirs(kind, words, "")(image, return_tensors="pt")["pixel_values"][0]
    most = 2.01 if ours.resample == 2 else 20  # a filter that overshoots at edges is cut off at 0 and 255, here twice
    assert (seen - default).abs().max() < most * step, "the two round differently while they resize, no more"
    assert (seen - default).abs().mean() < 0.2 * step


def test_a_processor_that_is_saved_reads_back_for_us_and_for_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    pytest.importorskip("torchvision", reason="torchvision absent: transformers' default image processors need it")
    for ours in (
        ImageProcessor(),
        ImageProcessor(resize=30, crop=(20, 24), resample=3),
        ImageProcessor(resize=(28, 28), mean=(0.286,), std=(0.353,), n_channels=1),
        ImageProcessor(resize=None),
    ):
        folder_with({}, tmp_path, ours.n_channels)
        ours.save(tmp_path)
        assert ImageProcessor.load(tmp_path) == ours
        image = noise(32, 29, "L" if ours.n_channels == 1 else "RGB")
        pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
        assert (ours.read(image) - pixels[0]).abs().max() < 2.01 / 255 / min(ours.std)


# ---------------------------------------------------------------- every way in


def test_a_path_a_picture_and_a_tensor_are_seen_alike(tmp_path: Path) -> None:
    image = noise(40, 30)
    image.save(tmp_path / "x.png")
    ours = ImageProcessor(resize=(16, 16))
    seen = ours.read(image)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for same in (tmp_path / "x.png", str(tmp_path / "x.png"), tensor, tensor / 255, (tensor / 255).double()):
        assert torch.equal(ours.read(same), seen)
    assert seen.shape == (3, 16, 16) and seen.dtype == torch.float32


def test_grey_becomes_colour_and_colour_grey() -> None:
    grey, colour = noise(20, 20, "L"), noise(20, 20)
    seen = ImageProcessor(resize=(20, 20)).read(grey)
    assert seen.shape == (3, 20, 20) and torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    one = ImageProcessor(resize=(20, 20), mean=(0.5,), std=(0.5,), n_channels=1)
    assert torch.equal(one.read(colour), one.read(colour.convert("L")))
    assert torch.equal(one.read(torch.from_numpy(np.array(grey))), one.read(grey))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_picture_of_any_mode_is_read(mode: str) -> None:
    image = noise(12, 12)
    if mode == "I;16":
        image = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
    seen = ImageProcessor(resize=None).read(image if mode == "I;16" else image.convert(mode))
    assert seen.shape == (3, 12, 12) and seen.std() > 0.2


def test_a_band_called_a_is_not_always_what_is_transparent() -> None:
    image = Image.merge("LAB", noise(12, 12).split())
    assert torch.equal(ImageProcessor(resize=None).read(image), ImageProcessor(resize=None).read(image.convert("RGB")))
    grey = ImageProcessor(resize=None, mean=(0.5,), std=(0.5,), n_channels=1)
    assert grey.read(image).std() > 0.1


def test_what_is_transparent_is_white_as_in_transformers() -> None:
    image = noise(12, 12).convert("RGBA")
    image.putalpha(noise(12, 12, "L"))
    ours = ImageProcessor(resize=None).read(image)
    words = {"do_convert_rgb": True, "do_resize": False, "image_processor_type": "ViTImageProcessor"}
    expected = theirs("ViT", words, "Pil")(image, return_tensors="np")["pixel_values"][0]
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=0, atol=1e-5)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert ImageProcessor(resize=None).read(clear).eq(1).all()


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    image = noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways: turn it to the right
    image.save(tmp_path / "x.png", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(ImageProcessor(resize=None).read(tmp_path / "x.png"), ImageProcessor(resize=None).read(turned))


def test_pictures_of_folders_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "sub/c.jpeg", "a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images([tmp_path])) == [tmp_path / name for name in ("a.jpg", "b.PNG", "sub/c.jpeg")]
    assert list(find_images([tmp_path / "notes.txt"])) == [tmp_path / "notes.txt"]
    assert is_image("x.webp") and is_image(Path("x.TIFF")) and not is_image("x.txt") and not is_image("png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no picture: expected files that end in \.avif"):
        list(find_images([tmp_path / "empty"]))


# ---------------------------------------------------------------- refusals


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    ours = ImageProcessor()
    (tmp_path / "text.png").write_text("no picture")
    noise(90, 90).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    for name, message in (
        ("text.png", "is no picture that Pillow can read"),
        ("empty.png", "is no picture that Pillow can read"),
        ("half.png", "damaged or unreadable picture"),
        ("lost.png", "no such file"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            ours.read(tmp_path / name)
        assert name in str(refusal.value)
    with pytest.raises(InputError, match="damaged or unreadable picture"):
        ours.read(tmp_path)


@pytest.mark.parametrize(
    "tensor, message",
    [
        (torch.zeros(3, 4, 4, 1), r"expected a picture of \(height, width\) or \(1 or 3 channels"),
        (torch.zeros(2, 4, 4), "1 or 3 channels"),
        (torch.zeros(3, 0, 4), "1 or 3 channels"),
        (torch.full((4, 4), 2.0), "expected floats from 0 to 1, got 2 to 2: divide by 255"),
        (torch.full((4, 4), float("nan")), "expected floats from 0 to 1"),
        (torch.zeros(4, 4, dtype=torch.int64), "expected a picture of uint8 or of floats, got torch.int64"),
    ],
    ids=str,
)
def test_a_tensor_that_is_no_picture_is_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageProcessor().read(tensor)


@pytest.mark.parametrize(
    "words, message",
    [
        ({"crop_pct": 0.9}, "crop_pct 0.9, which may change what the model sees, is not done here"),
        ({"do_rezize": True}, "did you mean 'do_resize'"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type 'CLIPImageProcessor' is unknown"),
        ({"do_pad": True}, "do_pad True"),
        ({"size": {"longest_edge": 30}}, "size: expected a whole number, or a height and a width"),
        ({"size": 0}, "size: expected"),
        ({"resample": 9}, "resample: expected a whole number from 0 to 5, got 9"),
        ({"do_resize": "yes"}, "do_resize: expected true or false, got 'yes'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: expected a number for each of 3 channels"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std: expected a number above 0 for each"),
        ({"rescale_factor": "1/255"}, "rescale_factor: expected a number"),
    ],
    ids=str,
)
def test_what_is_not_done_here_is_refused(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as refusal:
        ImageProcessor.load(folder_with({**VIT, **words}, tmp_path))
    assert "preprocessor_config.json" in str(refusal.value)


def test_a_folder_without_a_processor_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no preprocessor_config\.json"):
        ImageProcessor.load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, got list"):
        ImageProcessor.load(tmp_path)


# ---------------------------------------------------------------- large pictures


def claims(width: int, height: int) -> bytes:
    """Return a PNG whose header says this size, with pixels that are missing."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_picture_above_the_limit_is_refused_by_its_header_without_pillows_warning(tmp_path: Path) -> None:
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    for width, height in ((10_000, 9_000), (100_000, 100_000), (1, 100_000_000)):  # Pillow warns at the first
        (tmp_path / "large.png").write_bytes(claims(width, height))
        with pytest.raises(
            InputError, match=rf"large\.png: {width:,} x {height:,} pixels, expected at most 64,000,000"
        ):
            open_image(tmp_path / "large.png")
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_can_be_lifted_and_lowered(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30)).save(path)
    assert open_image(path, max_pixels=1_200).size == (40, 30)
    assert ImageProcessor(max_pixels=None).read(path).shape == (3, 224, 224)
    with pytest.raises(
        InputError, match="expected at most 1,199 in all: make it smaller, or allow more by --max-pixels"
    ):
        ImageProcessor(max_pixels=1_199).read(path)
    (tmp_path / "claims.png").write_bytes(claims(20_000, 20_000))
    with pytest.raises(InputError, match="damaged or unreadable"):  # its pixels were asked for
        open_image(tmp_path / "claims.png", max_pixels=None)


def test_a_thin_picture_is_not_resized_in_proportion_beyond_the_limit() -> None:
    from PIL import Image

    with pytest.raises(InputError, match="2 x 60,000 pixels, resized in proportion: 224 x 6,720,000 pixels"):
        ImageProcessor(resize=224, crop=(224, 224)).read(Image.new("L", (2, 60_000)))


def test_the_limit_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    ImageProcessor(max_pixels=9).save(tmp_path)
    assert ImageProcessor.load(tmp_path) == ImageProcessor()
