"""The weights inside an ONNX file, read by the rules of Protocol Buffers alone (onnx/onnx.proto3).

A message is a list of fields: a number that says which one and of what kind, then its value. Of a model we want the
graph (7), of the graph its nodes (1) and its tensors (5).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
FLOAT = 1  # TensorProto.DataType


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of every field of a message."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == VARINT:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(key & 7)
        if size is None:
            size, at = varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size


def text(value: memoryview) -> str:
    return bytes(value).decode()


def read(path: Path) -> tuple[dict[str, Tensor], list[tuple[str, str, list[str]]]]:
    """Return the float tensors by name, and every node as (kind, name, inputs)."""
    graph = next(value for number, value in fields(memoryview(path.read_bytes())) if number == 7)
    tensors, nodes = {}, []
    for number, value in fields(graph):
        if number == 5:
            tensor = list(fields(value))
            found = dict(tensor)
            if found.get(2) == FLOAT and 9 in found:
                dims = [size for field, size in tensor if field == 1]
                tensors[text(found[8])] = torch.from_numpy(np.frombuffer(found[9], "<f4").reshape(dims).copy())
        elif number == 1:
            node = list(fields(value))
            found = dict(node)
            nodes.append((text(found[4]), text(found.get(3, b"")), [text(x) for field, x in node if field == 1]))
    return tensors, nodes
