"""Attention in other libraries' models: what `watch` sees of it, keeps of it, and names as not seen.

    python bench/strangers.py [--only x-transformers SAM ...]

Each model is small and has random weights. A row says how many attention calls were recorded, of how many of these the
model's own weights were kept, how many were named as unseen, and how far maps are from the weights that the library
itself gives, where it gives any. Outputs are compared with those of the model that nobody watches.

Nothing is installed: a library that is absent is a row that says so. They bring many dependencies along, and some of
them another torch; install them where the project is not: a virtual environment that shares its packages.
"""

import argparse
import importlib.metadata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clearhead import watch

# Runs a model, and returns its output and the weights that the library gives, in the order of its layers.
Run = Callable[[], tuple[Any, list[Tensor]]]


@dataclass(frozen=True)
class Stranger:
    """A model of another library: the package to install, and what makes it and a way to run it."""

    title: str
    package: str
    make: Callable[[], tuple[nn.Module, Run]]


def x_transformers(**options: Any) -> tuple[nn.Module, Run]:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    model = TransformerWrapper(num_tokens=50, max_seq_len=32, attn_layers=layers)
    ids = torch.randint(0, 50, (2, 9))

    def run() -> tuple[Any, list[Tensor]]:
        out, between = model(ids, return_intermediates=True)
        return out, [one.post_softmax_attn for one in between.attn_intermediates if one.post_softmax_attn is not None]

    return model, run


def talking_heads() -> tuple[nn.Module, Run]:
    model, _ = x_transformers(attn_pre_talking_heads=True, attn_post_talking_heads=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)  # which mix nothing before they are trained
    return model, hooked(model, "post_softmax_talking_heads", torch.randint(0, 50, (2, 9)))


def vit_pytorch() -> tuple[nn.Module, Run]:
    from vit_pytorch import ViT

    model = ViT(image_size=16, patch_size=4, num_classes=3, dim=32, depth=2, heads=4, dim_head=8, mlp_dim=32)
    return model, hooked(model, "attend", torch.randn(2, 3, 16, 16))


def deep_vit() -> tuple[nn.Module, Run]:
    from vit_pytorch.deepvit import DeepViT

    model = DeepViT(image_size=16, patch_size=4, num_classes=3, dim=32, depth=2, heads=4, dim_head=8, mlp_dim=32)
    return model, hooked(model, "reattn_norm", torch.randn(2, 3, 16, 16))


def cait() -> tuple[nn.Module, Run]:
    from vit_pytorch.cait import CaiT

    sizes = {"dim": 32, "depth": 2, "cls_depth": 1, "heads": 4, "dim_head": 8, "mlp_dim": 32}
    model = CaiT(image_size=16, patch_size=4, num_classes=3, **sizes)
    pictures = torch.randn(2, 3, 16, 16)
    return model, lambda: (model(pictures), [])


def hooked(model: nn.Module, last: str, *given: Tensor) -> Run:
    """Return a run whose weights are what the modules of the name `last` gave."""
    found: list[Tensor] = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == last:
            module.register_forward_hook(lambda _, inputs, weights: found.append(weights))

    def run() -> tuple[Any, list[Tensor]]:
        found.clear()
        return model(*given), [*found]

    return run


def transformer_lens() -> tuple[nn.Module, Run]:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 16, "d_head": 8, "n_heads": 4, "d_vocab": 50}
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu", device="cpu"))
    ids = torch.randint(0, 50, (2, 9))

    def run() -> tuple[Any, list[Tensor]]:
        out, cache = model.run_with_cache(ids)
        return out, [cache["pattern", layer] for layer in range(2)]

    return model, run


def open_clip() -> tuple[nn.Module, Run]:
    from open_clip import model as clip

    vision = clip.CLIPVisionCfg(layers=2, width=64, head_width=16, image_size=16, patch_size=4)
    text = clip.CLIPTextCfg(context_length=9, vocab_size=50, width=32, heads=4, layers=2)
    model = clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    pictures, ids = torch.randn(2, 3, 16, 16), torch.randint(0, 50, (2, 9))
    return model, lambda: (model(pictures, ids), [])


def fair_esm() -> tuple[nn.Module, Run]:
    from esm.model.esm2 import ESM2

    model = ESM2(num_layers=2, embed_dim=32, attention_heads=4)
    ids = torch.randint(4, 24, (2, 9))

    def run() -> tuple[Any, list[Tensor]]:
        out = model(ids, need_head_weights=True)
        return out["logits"], list(out["attentions"].unbind(1))

    return model, run


def openai_whisper() -> tuple[nn.Module, Run]:
    from whisper.model import ModelDimensions, Whisper

    sizes = {"n_audio_ctx": 10, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2, "n_vocab": 50}
    model = Whisper(ModelDimensions(n_mels=8, n_text_ctx=9, n_text_state=32, n_text_head=4, n_text_layer=2, **sizes))
    sound, ids = torch.randn(2, 8, 20), torch.randint(0, 50, (2, 9))
    return model, lambda: (model(sound, ids), [])


def segment_anything() -> tuple[nn.Module, Run]:
    from segment_anything.modeling import ImageEncoderViT

    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "out_chans": 8}
    model = ImageEncoderViT(**sizes, use_rel_pos=True, window_size=3, global_attn_indexes=(1,))
    pictures = torch.randn(1, 3, 32, 32)
    return model, lambda: (model(pictures), [])


def torch_geometric() -> tuple[nn.Module, Run]:
    from torch_geometric.nn import TransformerConv

    model = TransformerConv(16, 8, heads=4)
    nodes, edges = torch.randn(7, 16), torch.randint(0, 7, (2, 20))
    return model, lambda: (model(nodes, edges), [])


def tabpfn() -> tuple[nn.Module, Run]:
    from tabpfn.architectures import tabpfn_v2

    config = tabpfn_v2.TabPFNV2Config(emsize=32, nlayers=2, nhead=4, max_num_classes=3, num_buckets=10)
    model = tabpfn_v2.get_architecture(config)
    rows, labels = torch.randn(9, 1, 4), torch.randint(0, 3, (6, 1)).float()
    return model, lambda: (model(rows, labels), [])


STRANGERS = (
    Stranger("x-transformers, Decoder", "x-transformers", x_transformers),
    Stranger("x-transformers, talking heads", "x-transformers", talking_heads),
    Stranger("x-transformers, keys of memory", "x-transformers", lambda: x_transformers(attn_num_mem_kv=2)),
    Stranger("vit-pytorch, ViT", "vit-pytorch", vit_pytorch),
    Stranger("vit-pytorch, DeepViT", "vit-pytorch", deep_vit),
    Stranger("vit-pytorch, CaiT", "vit-pytorch", cait),
    Stranger("TransformerLens, HookedTransformer", "transformer-lens", transformer_lens),
    Stranger("open_clip, CLIP", "open-clip-torch", open_clip),
    Stranger("fair-esm, ESM-2", "fair-esm", fair_esm),
    Stranger("openai-whisper, Whisper", "openai-whisper", openai_whisper),
    Stranger("segment-anything, ImageEncoderViT", "segment-anything", segment_anything),
    Stranger("PyTorch Geometric, TransformerConv", "torch-geometric", torch_geometric),
    Stranger("tabpfn, TabPFN v2", "tabpfn", tabpfn),
)


def tensors(output: Any) -> list[Tensor]:
    """Return the tensors of an output, nested as they may be."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [x for part in output for x in tensors(part)] if isinstance(output, (tuple, list)) else []


@torch.no_grad()
def row(stranger: Stranger) -> list[str]:
    """Return what there is to say of a model, as cells of a table."""
    try:
        version = importlib.metadata.version(stranger.package)
    except importlib.metadata.PackageNotFoundError:
        return [stranger.title, "", "not installed", "", "", "", ""]
    torch.manual_seed(0)
    model, run = stranger.make()
    model.eval()
    for weights in model.parameters():
        if not weights.any():
            nn.init.normal_(weights, std=0.1)  # what begins at 0 would show nothing
    blind, _ = run()
    with watch(model) as seen:
        watched, own = run()
    moved = max(float((a - b).abs().max()) for a, b in zip(tensors(blind), tensors(watched), strict=True))
    calls = [call for calls in seen.calls.values() for call in calls]
    kept = sum(call.weights is not None for call in calls)
    return [
        stranger.title,
        version,
        str(len(calls)),
        str(kept),
        str(len(seen.unseen)),
        f"{error(seen, own):.0e}" if own else "gives none",
        f"moved by {moved:.0e}" if moved else "the same bits",
    ]


def error(seen: Any, own: list[Tensor]) -> float:
    """Return the largest difference of maps to the library's own weights."""
    maps = seen.to_dense()
    assert len(maps) == len(own), f"{len(maps)} layers were seen, {len(own)} have weights"
    return max(float((a.reshape(b.shape) - b).abs().max()) for a, b in zip(maps, own))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="models with one of these words in their title")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")  # theirs
    print("| model | version | calls recorded | weights kept | named as unseen | largest difference | outputs |")
    print("|---|---|---|---|---|---|---|")
    for stranger in STRANGERS:
        if only is None or any(word.lower() in stranger.title.lower() for word in only):
            print(f"| {' | '.join(row(stranger))} |", flush=True)


if __name__ == "__main__":
    main()
