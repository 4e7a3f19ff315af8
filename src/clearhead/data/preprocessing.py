"""preprocessor_config.json: what transformers' image processors of ViT, DeiT and DINOv2 do, both ways. And timm's.

Every key is read, or has one value that is done here, or changes no pixel, or is refused. Used by `images.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

from clearhead.errors import CheckpointError, nearest
from clearhead.json_files import BOOLEAN, POSITIVE, TEXT, Kind, check, number, one_of, shown, whole

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
SIDE = whole(1, 2**16 - 1)
CHANNELS = Kind("1 or 3", lambda value: type(value) is int and value in (1, 3))
CHANNELS_AND_SQUARE = Kind(
    "1 or 3 channels and the two equal sides of a square",
    lambda value: isinstance(value, list) and len(value) == 3 and value[1] == value[2] and all(map(SIDE.fits, value)),
)
TYPES = {  # of UNDERSTOOD; sizes, means and deviations may be one number or several
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "default_to_square"), BOOLEAN),
    **dict.fromkeys(("image_processor_type", "feature_extractor_type"), TEXT),
    "resample": whole(0, 5),
    "rescale_factor": number(),
}
HARMLESS = frozenset(
    """
    _processor_class _valid_processor_keys auto_map backend data_format device disable_grouping image_seq_length
    input_data_format model_input_names processor_class return_tensors use_fast
    """.split()
)


def read_words(words: Mapping[str, Any], n_channels: int) -> dict[str, Any]:
    """Return the fields of an ImageProcessor that a file describes; CheckpointError at what is not done here."""
    check(words, TYPES)
    for key, given in words.items():
        if given is None or key in UNDERSTOOD or key in HARMLESS or given in SETTLED.get(key, ()):
            continue
        close = nearest(key, sorted(UNDERSTOOD))
        raise CheckpointError(f"{key} {shown(given)}, which may change what the model sees, is not done here{close}")
    kind = words.get("image_processor_type") or words.get("feature_extractor_type") or "ViTImageProcessor"
    if kind not in KINDS:
        raise CheckpointError(f"image_processor_type {shown(kind)} is unknown{nearest(kind, sorted(KINDS))}")
    defaults = DEFAULTS[KINDS[kind]]

    def said(key: str, default: Any) -> Any:
        return default if words.get(key) is None else words[key]

    square = said("default_to_square", defaults["square"])
    crops = said("do_center_crop", "crop_size" in defaults)
    mean, std = defaults["normal"] if said("do_normalize", True) else ((0.0,), (1.0,))
    if said("do_normalize", True):
        mean, std = said("image_mean", mean), said("image_std", std)
    return dict(
        resize=_size("size", said("size", defaults["size"]), square) if said("do_resize", True) else None,
        resample=said("resample", defaults["resample"]),
        crop=_both("crop_size", said("crop_size", defaults.get("crop_size", 224))) if crops else None,
        scale=float(said("rescale_factor", 1 / 255)) if said("do_rescale", True) else 1.0,
        mean=_channels("image_mean", mean, n_channels),
        std=_channels("image_std", std, n_channels),
        n_channels=CHANNELS.check("num_channels", n_channels),
    )


def read_timm(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an ImageProcessor that `pretrained_cfg` of a timm config.json describes."""
    names = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5, "random": 2}
    check(words, {"crop_pct": number(0.01, 100), "interpolation": one_of(names)})
    sides, share = words.get("input_size") or [3, 224, 224], words.get("crop_pct") or 0.875
    CHANNELS_AND_SQUARE.check("input_size", sides)
    if words.get("crop_mode", "center") not in (None, "center") or words.get("crop_border_pixels"):
        raise CheckpointError(
            f"crop_mode {shown(words.get('crop_mode'))}, which changes what the model sees, is not done here"
        )
    return dict(
        resize=math.floor(sides[1] / share),
        resample=names[words.get("interpolation") or "bicubic"],
        crop=(sides[1], sides[2]),
        mean=_channels("mean", words.get("mean") or [0.485, 0.456, 0.406], sides[0]),
        std=_channels("std", words.get("std") or [0.229, 0.224, 0.225], sides[0]),
        n_channels=CHANNELS.check("input_size[0]", sides[0]),
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


def _side(value: Any) -> bool:
    return SIDE.fits(value)


def _size(key: str, value: Any, square: bool) -> tuple[int, int] | int:
    """Return (height, width), or the shorter side; a lone number is a square to some processors."""
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"} and _side(value["shortest_edge"]):
        return int(value["shortest_edge"])
    return int(value) if _side(value) and not square else _both(key, value)


def _both(key: str, value: Any) -> tuple[int, int]:
    sides = (value.get("height"), value.get("width")) if isinstance(value, Mapping) and len(value) == 2 else value
    sides = (sides, sides) if _side(sides) else sides
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_side, sides)):
        raise CheckpointError(f"{key}: expected a whole number, or a height and a width, got {shown(value)}")
    return int(sides[0]), int(sides[1])


def _channels(key: str, value: Any, n_channels: int) -> tuple[float, ...]:
    """Return one number a channel; one for all is allowed."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    numbers = numbers * n_channels if len(numbers) == 1 else numbers
    kind = POSITIVE if key in ("image_std", "std") else number()
    if len(numbers) != n_channels or not all(map(kind.fits, numbers)):
        raise CheckpointError(f"{key}: expected {kind.expected} for each of {n_channels} channels, got {shown(value)}")
    return tuple(map(float, numbers))
