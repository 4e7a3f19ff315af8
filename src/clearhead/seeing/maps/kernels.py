"""Exact overviews in one pass on a GPU: the torch path of `pyramid.py`, tile by tile in registers.

Nothing but queries, keys and normalisers is read, nothing but block sums is written: no weight ever reaches memory.
Half of the fused forward's products (no values), no running maximum, one fused multiply-add and one exp2 a weight
because scale and log2(e) are folded into the normaliser. Tiles hold whole blocks, several where blocks are small; a
block larger than a tile is summed from halves of itself, which nest. Only tiles that the rule cuts through are masked,
and with a causal mask the longest rows start first.

Triton is imported when this module is, which is when a recording on a GPU is first asked for an overview.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = 128, 64, 32, 16  # rows and columns of a tile, best first: 128 x 128 sums in registers with 8 warps
STAGES = 3, 2, 1  # tiles of keys that are on their way at once
ROOM = 227 * 1024  # bytes of shared memory that a program can have on an H100
LEAST = 16  # rows and columns that a product on tensor cores needs
PROGRAMS = 264  # two for each of an H100's 132 processors: fewer are made up for by splitting the keys
NOWHERE = 2**30  # farther than any key


@triton.jit
@no_type_check
def _some_cells(
    q, lse, k_at, hidden_at, out_at, first, stop, row, row_ok, reach, since,
    n_keys, n_cols, d, k_stride, scale,
    D: tl.constexpr, RC: tl.constexpr, HP: tl.constexpr, CC: tl.constexpr, WP: tl.constexpr,
    MASKED: tl.constexpr, HIDDEN: tl.constexpr, EVEN: tl.constexpr, MAX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pool column tiles `first` to `stop` of one row tile. RC x HP rows and CC x WP columns are blocks x positions."""
    lane = tl.arange(0, CC * WP)
    depth = tl.arange(0, D)
    for tile in range(first, stop):
        cell = tile * CC + lane // WP
        start = (cell.to(tl.int64) * n_keys // n_cols).to(tl.int32)
        end = ((cell.to(tl.int64) + 1) * n_keys // n_cols).to(tl.int32)
        key = start + lane % WP
        inside = (key < end) & (cell < n_cols)
        if EVEN:
            k = tl.load(k_at + key[:, None].to(tl.int64) * k_stride + depth[None, :])
        else:
            k = tl.load(
                k_at + key[:, None].to(tl.int64) * k_stride + depth[None, :],
                mask=inside[:, None] & (depth < d)[None, :],
                other=0.0,
            )
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None]
        if HIDDEN:
            s += tl.load(hidden_at + key, mask=inside, other=-1e30)[None, :]
        elif not EVEN:
            s += tl.where(inside, 0.0, -1e30)[None, :]
        p = tl.exp2(s)
        if MASKED:
            may = (key[None, :] <= row[:, None] + reach) & (key[None, :] >= row[:, None] + since)
            p = tl.where(may, p, 0.0)
        p = tl.reshape(p, (RC * HP, CC, WP))
        if MAX:
            blocks = tl.max(tl.reshape(tl.max(p, axis=2), (RC, HP, CC)), axis=1)
        else:
            blocks = tl.sum(tl.reshape(tl.sum(p, axis=2), (RC, HP, CC)), axis=1)
        across = tile * CC + tl.arange(0, CC)
        tl.store(out_at + across[None, :], blocks, mask=row_ok & (across < n_cols)[None, :])


@triton.jit(do_not_specialize=["n_queries", "n_rows", "n_cols", "reach", "since", "splits", "hidden_stride"])
@no_type_check
def _pool(
    q_at, k_at, lse_at, hidden_at, kv_of_at, out_at,
    n_queries, n_keys, n_rows, n_cols, d, reach, since, splits, scale, hidden_stride,
    D: tl.constexpr, RC: tl.constexpr, HP: tl.constexpr, CC: tl.constexpr, WP: tl.constexpr,
    CUT: tl.constexpr, HIDDEN: tl.constexpr, EVEN: tl.constexpr, MAX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pool one row tile of one head, over one of `splits` stretches of its columns."""
    head, split = tl.program_id(0), tl.program_id(2)
    row_tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the last rows see most keys
    lane = tl.arange(0, RC * HP)
    cell = row_tile * RC + lane // HP
    start = (cell.to(tl.int64) * n_queries // n_rows).to(tl.int32)
    end = ((cell.to(tl.int64) + 1) * n_queries // n_rows).to(tl.int32)
    row = start + lane % HP
    inside = (row < end) & (cell < n_rows)
    depth = tl.arange(0, D)
    head_at = head.to(tl.int64) * n_queries
    q = tl.load(
        q_at + (head_at + row[:, None]) * d + depth[None, :], mask=inside[:, None] & (depth < d)[None, :], other=0.0
    )
    lse = tl.load(lse_at + head_at + row, mask=inside, other=1e30)
    k_at += tl.load(kv_of_at + head).to(tl.int64) * n_keys * d
    hidden_at += head.to(tl.int64) * hidden_stride
    down = row_tile * RC + tl.arange(0, RC)
    out_at += (head.to(tl.int64) * n_rows + down[:, None]) * n_cols
    row_ok = (down < n_rows)[:, None]

    # Which column tiles these rows see anything of, [left, right), and which they see all of, [free, free_to).
    top = (row_tile.to(tl.int64) * RC * n_queries // n_rows).to(tl.int32)
    bottom = (tl.minimum((row_tile + 1) * RC, n_rows).to(tl.int64) * n_queries // n_rows).to(tl.int32) - 1
    n_tiles = tl.cdiv(n_cols, CC)
    left, right, free, free_to = 0, n_tiles, 0, n_tiles
    if CUT:
        left = _tile_of(top + since, n_keys, n_cols, CC)
        right = tl.where(bottom + reach < 0, 0, _tile_of(bottom + reach, n_keys, n_cols, CC) + 1)
        free = tl.where(bottom + since <= 0, 0, _tile_of(bottom + since - 1, n_keys, n_cols, CC) + 1)
        free_to = tl.where(top + reach + 1 >= n_keys, n_tiles, _tile_of(top + reach + 1, n_keys, n_cols, CC))
        free_to = tl.where(top + reach + 1 <= 0, 0, free_to)
    each = tl.cdiv(tl.maximum(right - left, 0), splits)
    left, right = left + split * each, tl.minimum(left + (split + 1) * each, right)
    free = tl.minimum(tl.maximum(free, left), right)
    free_to = tl.maximum(tl.minimum(free_to, right), free)
    if CUT:
        _some_cells(
            q, lse, k_at, hidden_at, out_at, left, free, row, row_ok, reach, since, n_keys, n_cols, d, d, scale,
            D, RC, HP, CC, WP, True, HIDDEN, EVEN, MAX, PRECISION,
        )  # fmt: skip
    _some_cells(
        q, lse, k_at, hidden_at, out_at, free, free_to, row, row_ok, reach, since, n_keys, n_cols, d, d, scale,
        D, RC, HP, CC, WP, False, HIDDEN, EVEN, MAX, PRECISION,
    )  # fmt: skip
    if CUT:
        _some_cells(
            q, lse, k_at, hidden_at, out_at, free_to, right, row, row_ok, reach, since, n_keys, n_cols, d, d, scale,
            D, RC, HP, CC, WP, True, HIDDEN, EVEN, MAX, PRECISION,
        )  # fmt: skip


@triton.jit
@no_type_check
def _tile_of(key, n_keys, n_cols, CC: tl.constexpr):
    """Return the column tile that holds a key: the last one whose first key is not after it."""
    key = tl.minimum(tl.maximum(key, 0), n_keys - 1).to(tl.int64)
    return (((key + 1) * n_cols - 1) // n_keys // CC).to(tl.int32)


def pooled(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    size: tuple[int, int],
    *,
    scale: float,
    kv_of: Tensor,
    reach: int | None = None,
    since: int | None = None,
    hidden: Tensor | None = None,
    largest: bool = False,
) -> Tensor:
    """Return the sums (or the `largest`) of 2 ** (scale * q . k - lse + hidden) in size[0] x size[1] blocks.

    q (heads, query, d), k (kv_heads, key, d) in any floating dtype; lse (heads, query) and `hidden` (1 or heads, key)
    float32; blocks are those of `pyramid.cuts`; `kv_of` says which rows of k serve each head. float32 is multiplied as
    three TF32 products, which keeps its precision.
    """
    n_heads, n_queries, d = q.shape
    n_keys = k.shape[1]
    depth = max(LEAST, _power(d))
    tile, stages, at_once = fitting(depth, q.element_size(), _room(q.device))
    grids = (_grid(n, blocks, tile) for n, blocks in zip((n_queries, n_keys), size))
    (n_rows, height, rc, halved), (n_cols, width, cc, cut) = grids
    out = torch.zeros(n_heads, n_rows, n_cols, dtype=torch.float32, device=q.device)
    grid_rows = -(-n_rows // rc)
    splits = max(1, min(-(-n_cols // cc), PROGRAMS // max(1, n_heads * grid_rows)))
    even = n_keys == n_cols * width and n_cols % cc == 0 and depth == d
    options: dict[str, Any] = {} if q.device.type == "cpu" else options_for(stages, at_once if even else 1)
    _pool[(n_heads, grid_rows, splits)](
        q.contiguous(), k.contiguous(), lse.contiguous(), out if hidden is None else hidden.contiguous(), kv_of, out,
        n_queries, n_keys, n_rows, n_cols, d,
        NOWHERE if reach is None else reach, -NOWHERE if since is None else since, splits, scale,
        0 if hidden is None or len(hidden) == 1 else n_keys,
        D=depth, RC=rc, HP=height, CC=cc, WP=width,
        CUT=reach is not None or since is not None, HIDDEN=hidden is not None,
        EVEN=even, MAX=largest,
        PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee",
        **options,
    )  # fmt: skip
    for axis, more in ((1, halved), (2, cut)):
        if more:
            four = out.unflatten(axis, (-1, 1 << more))  # type: ignore[no-untyped-call]  # torch's
            out = four.amax(axis + 1) if largest else four.sum(axis + 1)
    return out


def fitting(depth: int, itemsize: int, room: int) -> tuple[int, int, int]:
    """Return the largest tile, and the most stages, for which what is multiplied fits into `room` bytes; programs.

    What Triton keeps there for Hopper's products: a tile of queries, one of keys a stage, two more where float32 is
    multiplied in parts, and a little. tests/seeing/maps/test_kernels_compiled.py compares that with what it compiles.

    Exponentials take longer than products here. Where two programs fit, one's products run under the other's
    exponentials; before Hopper, operands go through registers, of which there are too few for two.
    """
    ways = [(1, tile, stages) for tile in TILES for stages in STAGES]
    if itemsize < 4 and room >= ROOM:
        ways = [(2, TILES[0], 3), (2, TILES[0], 2), *ways]
    for at_once, tile, stages in ways:
        operands = 1 + stages + 2 * (itemsize == 4)
        if operands * tile * depth * itemsize + 2048 <= room // at_once:
            return tile, stages, at_once
    return TILES[-1], STAGES[-1], 1


def options_for(stages: int, at_once: int) -> dict[str, int]:
    """Return how Triton is to compile it: 8 warps of 32 threads, of which 128 registers each let two programs run.

    So few are enough where blocks are even; elsewhere a hundred values of a thread would go to memory and back.
    """
    options = {"num_warps": 8, "num_stages": stages}
    return options | {"maxnreg": 128} if at_once == 2 and torch.version.hip is None else options


def _room(device: torch.device) -> int:
    """Return how many bytes of shared memory a program can have."""
    if device.type != "cuda":
        return ROOM
    known: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the name
    return int(known.shared_memory_per_block_optin)


def _grid(n: int, size: int, tile: int) -> tuple[int, int, int, int]:
    """Return how many blocks the kernel makes, the power of two they fit into, how many to a tile, times halved."""
    halved = 0
    while -(-n // (size << halved)) > tile:
        halved += 1
    blocks = size << halved
    width = _power(-(-n // blocks))
    return blocks, width, min(tile // width, max(_power(blocks), -(-LEAST // width))), halved


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
