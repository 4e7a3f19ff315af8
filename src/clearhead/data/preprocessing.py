"""preprocessor_config.json: what transformers' image processors of ViT, DeiT and DINOv2 do, both ways. And timm's.

Every key is read, or has one value that is done here, or changes no pixel, or is refused. Used by `images.py`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from clearhead.errors import CheckpointError, nearest

PREPROCESSOR = "preprocessor_config.json"  # of sounds, too
BILINEAR, BICUBIC = 2, 3  # PIL.Image.Resampling; 0 nearest, 1 Lanczos, 4 box, 5 Hamming
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# What each processor does where its file is silent (transformers 5, models/{vit,deit,bit}/image_processing_*.py).
# BiT's is DINOv2's.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": BILINEAR, "normal": HALF, "square": True},
    "DeiT": {"size": 256, "resample": BICUBIC, "crop_size": 224, "normal": HALF, "square": True},
    "Bit": {"size": 224, "resample": BICUBIC, "crop_size": 224, "normal": CLIP, "square": False},
}
KINDS = {
    f"{name}{suffix}": name
    for name in DEFAULTS
    for suffix in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}
UNDERSTOOD = frozenset(
    """
    do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std
    default_to_square image_processor_type feature_extractor_type
    """.split()
)
SETTLED: dict[str, tuple[Any, ...]] = {"do_convert_rgb": (True, False), "do_pad": (False,)}  # see ImageProcessor.read
HARMLESS = frozenset(
    """
    _processor_class _valid_processor_keys auto_map backend data_format device disable_grouping image_seq_length
    input_data_format model_input_names processor_class return_tensors use_fast
    """.split()
)


def read_words(words: Mapping[str, Any], n_channels: int) -> dict[str, Any]:
    """Return the fields of an ImageProcessor that a file describes; CheckpointError at what is not done here."""
    for key, given in words.items():
        if given is None or key in UNDERSTOOD or key in HARMLESS or given in SETTLED.get(key, ()):
            continue
        close = nearest(key, sorted(UNDERSTOOD))
        raise CheckpointError(f"{key} {given!r}, which may change what the model sees, is not done here{close}")
    kind = words.get("image_processor_type") or words.get("feature_extractor_type") or "ViTImageProcessor"
    if kind not in KINDS:
        raise CheckpointError(f"image_processor_type {kind!r} is unknown{nearest(str(kind), sorted(KINDS))}")
    defaults = DEFAULTS[KINDS[kind]]

    def said(key: str, default: Any) -> Any:
        return default if words.get(key) is None else words[key]

    def does(key: str, default: bool) -> bool:
        return _checked(key, said(key, default), "true or false", lambda answer: isinstance(answer, bool))

    square = does("default_to_square", defaults["square"])
    crops = does("do_center_crop", "crop_size" in defaults)
    mean, std = defaults["normal"] if does("do_normalize", True) else ((0.0,), (1.0,))
    if does("do_normalize", True):
        mean, std = said("image_mean", mean), said("image_std", std)
    return dict(
        resize=_size("size", said("size", defaults["size"]), square) if does("do_resize", True) else None,
        resample=_checked("resample", said("resample", defaults["resample"]), "0 to 5", lambda n: n in range(6)),
        crop=_both("crop_size", said("crop_size", defaults.get("crop_size", 224))) if crops else None,
        scale=float(_number("rescale_factor", said("rescale_factor", 1 / 255))) if does("do_rescale", True) else 1.0,
        mean=_channels("image_mean", mean, n_channels),
        std=_channels("image_std", std, n_channels),
        n_channels=_checked("num_channels", n_channels, "1 or 3", lambda n: n in (1, 3)),
    )


def read_timm(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an ImageProcessor that `pretrained_cfg` of a timm config.json describes."""
    names = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5, "random": 2}
    sides, share = words.get("input_size", [3, 224, 224]), words.get("crop_pct") or 0.875
    if not isinstance(sides, list) or len(sides) != 3 or sides[1] != sides[2] or not all(map(_side, sides)):
        raise CheckpointError(f"input_size: expected channels and the two equal sides of a square, got {sides!r}")
    if words.get("crop_mode", "center") not in (None, "center") or words.get("crop_border_pixels"):
        raise CheckpointError(
            f"crop_mode {words.get('crop_mode')!r}, which changes what the model sees, is not done here"
        )
    name = words.get("interpolation") or "bicubic"
    _checked("crop_pct", _number("crop_pct", share), "a number above 0", lambda number: number > 0)
    return dict(
        resize=math.floor(sides[1] / share),
        resample=_checked("interpolation", names.get(name), f"one of {', '.join(names)}", lambda n: n is not None),
        crop=(sides[1], sides[2]),
        mean=_channels("mean", words.get("mean", [0.485, 0.456, 0.406]), sides[0]),
        std=_channels("std", words.get("std", [0.229, 0.224, 0.225]), sides[0]),
        n_channels=_checked("input_size", sides[0], "1 or 3 channels", lambda n: n in (1, 3)),
        rounds=True,
    )


def write_words(
    *,
    resize: tuple[int, int] | int | None,
    resample: int,
    crop: tuple[int, int] | None,
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    n_channels: int,
    rounds: bool,
) -> dict[str, Any]:
    """Return the fields of an ImageProcessor in transformers' words: `read_words` backwards.

    They have none for `rounds`: a crop of an odd margin is then one pixel to the left.
    """
    words: dict[str, Any] = {"image_processor_type": "ViTImageProcessor" if crop is None else "DeiTImageProcessor"}
    words |= {"do_resize": resize is not None, "resample": resample, "do_center_crop": crop is not None}
    if isinstance(resize, int):
        words["size"] = {"shortest_edge": resize}
    elif resize is not None:
        words["size"] = {"height": resize[0], "width": resize[1]}
    if crop is not None:
        words["crop_size"] = {"height": crop[0], "width": crop[1]}
    assert len(mean) == len(std) == n_channels
    words |= {"do_rescale": True, "rescale_factor": scale}
    return words | {"do_normalize": True, "image_mean": list(mean), "image_std": list(std)}


def _checked(key: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
    if not fits(value):
        raise CheckpointError(f"{key}: expected {expected}, got {value!r}")
    return value


def _number(key: str, value: Any) -> Any:
    return _checked(
        key, value, "a number", lambda n: isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)
    )


def _side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**16


def _size(key: str, value: Any, square: bool) -> tuple[int, int] | int:
    """Return (height, width), or the shorter side; a lone number is a square to some processors."""
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"} and _side(value["shortest_edge"]):
        return int(value["shortest_edge"])
    return int(value) if _side(value) and not square else _both(key, value)


def _both(key: str, value: Any) -> tuple[int, int]:
    sides = (value.get("height"), value.get("width")) if isinstance(value, Mapping) and len(value) == 2 else value
    sides = (sides, sides) if _side(sides) else sides
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_side, sides)):
        raise CheckpointError(f"{key}: expected a whole number, or a height and a width, got {value!r}")
    return int(sides[0]), int(sides[1])


def _channels(key: str, value: Any, n_channels: int) -> tuple[float, ...]:
    """Return one number a channel; one for all is allowed."""
    numbers = [value] if isinstance(value, int | float) else value
    if isinstance(numbers, list | tuple) and len(numbers) == 1:
        numbers = [*numbers] * n_channels
    if not isinstance(numbers, list | tuple) or len(numbers) != n_channels:
        raise CheckpointError(f"{key}: expected a number for each of {n_channels} channels, got {value!r}")
    if key == "image_std" and not all(_number(key, n) > 0 for n in numbers):
        raise CheckpointError(f"{key}: expected numbers above 0, got {value!r}")
    return tuple(float(_number(key, n)) for n in numbers)
