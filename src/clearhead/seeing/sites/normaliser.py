"""What a fused kernel normalised by, taken from the kernel by a dispatch mode around the call. Next: `fused.py`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Fused kernels whose second output is the log-sum-exp, as (batch, heads, query[, 1]), some padded along query;
# flash_attn's for several texts as (heads, tokens).
WITH_LSE = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
}
# Two of them compute it only when a gradient is wanted: their fifth argument says so.
ON_REQUEST = {"_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"}


class LogSumExp(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Open around one fused call; afterwards `found` is what its kernel normalised by, or None."""

    found: Tensor | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this, torch imports its compiler (1.3 s) to keep it away from the method below."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` as it is, or where it would not have computed a log-sum-exp, with that asked for."""
        name = func._schema.name.removeprefix("aten::")
        if name in ON_REQUEST:
            args = (*args[:4], True, *args[5:])
        out = func(*args, **(kwargs or {}))
        if name in WITH_LSE:
            self.found = out[1].detach()
        return out
