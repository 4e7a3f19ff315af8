"""Compile the GPU's kernel for a GPU that is not there, and print as JSON what of its shared memory each kind takes.

Run by test_kernels_compiled.py, in a process in which Triton compiles and does not interpret.
"""

import json
import sys

from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clearhead.seeing.maps import kernels

TYPES = {"q_at": "*", "k_at": "*", "lse_at": "*fp32", "hidden_at": "*fp32", "kv_of_at": "*i32", "out_at": "*fp32"}


def shared(architecture: int, dtype: str, itemsize: int, d: int, room: int) -> int:
    """Return the bytes that the programs of one processor take, with every branch of the kernel compiled."""
    tile, stages, at_once = kernels.fitting(d, itemsize, room)
    chosen = {
        "D": d,
        "RC": 1,
        "HP": tile,
        "CC": 1,
        "WP": tile,
        "CUT": True,
        "HIDDEN": True,
        "EVEN": False,
        "MAX": False,
    }
    chosen["PRECISION"] = "tf32x3" if dtype == "fp32" else "ieee"
    names = kernels._pool.arg_names
    types = {**dict.fromkeys(names, "i32"), **TYPES, "q_at": f"*{dtype}", "k_at": f"*{dtype}", "scale": "fp32"}
    source = ASTSource(
        fn=kernels._pool,
        signature={name: "constexpr" if name in chosen else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in chosen.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in (*TYPES, "d", "n_keys")},
    )
    made = compiled(source, target=GPUTarget("cuda", architecture, 32), options=kernels.options_for(stages, at_once))
    return at_once * made.metadata.shared


if __name__ == "__main__":
    print(json.dumps([shared(*asked) for asked in json.loads(sys.argv[1])]))
