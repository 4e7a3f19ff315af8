"""Linear layers for reading one token at a time on a CPU: the same product, its weights laid out in one way or another.

Reading one token is waiting for weights, so what counts is how many bytes of them there are and how fast a kernel reads
them. What flows between the layers stays float32 throughout. bench/generate_cpu.py has the speed, LOG.md what each
kernel reads of the memory's rate. oneDNN's own is in `clearhead/packed.py`, where encoders need it too. Next:
`packed.py` beside this file, which puts them into a model.
"""

import platform
import warnings
from collections.abc import Callable

import torch
import torch.backends.quantized
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.block import Activation
from clearhead.errors import ConfigError
from clearhead.packed import OneDNNLinear, onednn_obstacle

# weight (out x in, float32), bias, what comes after -> a layer
MakeLinear = Callable[[Tensor, Tensor | None, Activation | None], nn.Module]

FEW = 4  # rows up to which FBGEMM's float16 reads sooner than oneDNN's float32; LOG.md has both by rows
LARGEST_HALF = 65_504.0  # of float16
SMALLEST_HALF = 2.0**-14  # of float16 with all its bits: below, it loses one for every halving
LOWER = 2.0**11  # by which the second half of a float32 is enlarged, lest it falls below what float16 holds
KERNEL_READS = 32  # channels torch's int8 kernel reads at a time: it does not check, and reads past the end of a row
PAYS_AFTER = 256  # tokens: what packing float32 a second time costs, and FBGEMM packs slowly, is saved again by then


def layout(dtype: torch.dtype, tokens: int | None) -> tuple[MakeLinear, str]:
    """Return what makes the linear layers that read weights in `dtype` soonest here, and its name.

    `tokens` is how many will be written, if that is known; many, where it is not.
    """
    if dtype == torch.int8:
        return (Int8Linear, "int8 weights") if bytes_obstacle() else (BytesLinear, "int8 weights and inputs, by FBGEMM")
    if dtype == torch.float16:
        return HalfLinear, "float16 weights, by FBGEMM"
    if dtype == torch.bfloat16:
        return bfloat16_linear, "oneDNN's packed weights, bfloat16"
    if fbgemm_obstacle() or (tokens is not None and tokens < PAYS_AFTER):
        return OneDNNLinear, "oneDNN's packed weights, float32"
    return float32_linear, "float32 in two halves, by FBGEMM; oneDNN's packed weights for many rows"


def obstacle(dtype: torch.dtype) -> str | None:
    """Return why no weights can be laid out in `dtype` here, or None if they can."""
    if dtype == torch.int8:
        return None if hasattr(torch, "_weight_int8pack_mm") else f"torch {torch.__version__} has no int8 product"
    if dtype == torch.float16:
        return fbgemm_obstacle()
    if dtype not in (torch.float32, torch.bfloat16):
        return f"expected float32, float16, bfloat16 or int8, got {dtype}"
    return onednn_obstacle(dtype)


def fbgemm_obstacle() -> str | None:
    """Return why FBGEMM's float16 kernels cannot be used here, or None if they can."""
    kernels = torch.backends.quantized
    if "fbgemm" not in kernels.supported_engines:
        return f"float16 weights are for x86 processors with AVX2, this is {platform.machine()}"
    if kernels.engine not in ("fbgemm", "x86"):
        return f"torch.backends.quantized.engine is {kernels.engine!r}: set it to 'x86'"
    needed = ("linear_prepack_fp16", "linear_dynamic_fp16")
    return None if all(hasattr(torch.ops.quantized, name) for name in needed) else _lacks("float16 products")


def bytes_obstacle() -> str | None:
    """Return why FBGEMM's product of bytes cannot be used here, or None if it can: sums are exact with VNNI alone."""
    if reason := fbgemm_obstacle():
        return reason
    if not torch.cpu._is_vnni_supported():
        return "this processor has no instructions for products of bytes"
    there = hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    return None if there and hasattr(torch, "quantize_per_channel") else _lacks("products of bytes")


def _lacks(what: str) -> str:
    return f"torch {torch.__version__} has no {what}"


def bfloat16_linear(weight: Tensor, bias: Tensor | None, then: Activation | None) -> nn.Module:
    """Return a layer with its weights rounded to bfloat16."""
    return OneDNNLinear(weight.bfloat16(), None if bias is None else bias.bfloat16(), then)


def float32_linear(weight: Tensor, bias: Tensor | None, then: Activation | None) -> nn.Module:
    """Return a layer of two halves, or the other one for the rare weights that float16 cannot hold."""
    return (OneDNNLinear if beyond_half(weight) else TwoHalvesLinear)(weight, bias, then)


def beyond_half(weight: Tensor) -> str | None:
    """Return why float16 cannot hold these weights, the largest to all its bits, or None if it can."""
    largest = float(weight.abs().max())
    if largest == 0 or SMALLEST_HALF <= largest <= LARGEST_HALF:  # "not a number" is neither
        return None
    if largest < SMALLEST_HALF:
        return (
            f"a layer whose largest weight is {largest:g} is too small for float16, exact from {SMALLEST_HALF:.2g} on"
        )
    return f"a weight of {largest:g} is beyond float16, which ends at {LARGEST_HALF:g}"


class HalfLinear(nn.Module):
    """`then(x @ weight^T + bias)` with weights of two bytes, float16, by FBGEMM.

    They meet float32, and sums are float32 too. Three bits more exact than bfloat16, and faster for a few rows: nothing
    else is rounded, and nothing converted.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        if reason := beyond_half(weight):
            raise ConfigError(f"{reason}: pack in bfloat16")
        self.packed, self.then = torch.ops.quantized.linear_prepack_fp16(weight, bias), then

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x.float(), self.packed).to(x.dtype)
        return y if self.then is None else self.then(y)


class TwoHalvesLinear(nn.Module):
    """The same with float32 weights as sums of two float16, `weight = upper + lower / LOWER`, exact to 22 bits.

    As many bytes as before, read by the faster kernel. For more than a `FEW` rows, oneDNN's layout is there as well:
    this layer takes twice the memory of the others.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        upper = weight.half().float()
        halves = torch.cat([upper, (weight - upper) * LOWER])
        self.packed, self.n_out = torch.ops.quantized.linear_prepack_fp16(halves, None), len(weight)
        self.bias, self.then, self.many = bias, then, OneDNNLinear(weight, bias, then)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        if x.numel() > FEW * x.shape[-1]:
            y: Tensor = self.many(x)
            return y
        halves = torch.ops.quantized.linear_dynamic_fp16.default(x.float(), self.packed)
        y = torch.add(halves[..., : self.n_out], halves[..., self.n_out :], alpha=1 / LOWER)
        y = (y if self.bias is None else y.add_(self.bias)).to(x.dtype)
        return y if self.then is None else self.then(y)


class BytesLinear(nn.Module):
    """The same with one byte for every weight and every input, by FBGEMM, for processors that multiply bytes.

    Weights have a scale for each output, inputs one for each row, so no text depends on its neighbours (LLM.int8,
    Dettmers et al. 2022, section 2.1, "vector-wise", without its outliers). Sums are exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # torch 2.13 calls the type deprecated, but has no other for this kernel
            warnings.simplefilter("ignore", UserWarning)
            whole = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
        self.packed, self.bias, self.then = torch.ops.quantized.linear_prepack(whole, None), bias, then

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        exact = x.float()
        largest = torch.linalg.vector_norm(exact, torch.inf, -1, keepdim=True).clamp_(min=1e-30)
        kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        y: Tensor = kernel(exact / largest, 1 / 127, 128, self.packed)
        y = y * largest if self.bias is None else torch.addcmul(self.bias, y, largest)
        y = y.to(x.dtype)
        return y if self.then is None else self.then(y)


class Int8Linear(nn.Module):
    """Weights of one byte on any processor: `weight[i] = scale[i] * whole[i]`, scales exact in bfloat16.

    The product is made of bfloat16 inputs and outputs (the one kernel of torch that is fast), sums are float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        whole, self.scale = eight_bits(weight)
        self.spare = -weight.shape[1] % KERNEL_READS
        self.whole = F.pad(whole, (0, self.spare)).contiguous()  # a frozen GPT-2's lie turned
        self.bias, self.then = bias, then

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        rows = x.flatten(0, -2).bfloat16()
        y = torch._weight_int8pack_mm(F.pad(rows, (0, self.spare)) if self.spare else rows, self.whole, self.scale)
        y = y.view(*x.shape[:-1], len(self.whole)).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y if self.then is None else self.then(y)


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127 and a bfloat16 scale a row, so that `weight` is nearly their product."""
    # a little more than amax / 127, lest rounding the scale down makes the largest number overflow
    scale = (weight.abs().amax(1).clamp(min=1e-12) / 126.5).bfloat16()
    return (weight / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale
