"""The GPU's kernel is compiled for GPUs that need not be there, and fits into their shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton absent (190 MB): the line for it in tests/peers.txt says how")

# By compute capability, from the table of technical specifications in the CUDA C++ programming guide.
ROOM = {80: 163, 89: 99, 90: 227}


@pytest.mark.parametrize("architecture", ROOM)
def test_what_is_multiplied_fits_into_the_shared_memory_of(architecture: int, tmp_path: Path) -> None:
    room = ROOM[architecture] * 1024
    kinds = [("bf16", 2, 64), ("bf16", 2, 128), ("bf16", 2, 256), ("fp32", 4, 64), ("fp32", 4, 128)]
    asked = json.dumps([(architecture, dtype, size, d, room) for dtype, size, d in kinds])
    env = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = Path(__file__).with_name("ahead_of_time.py")
    ran = subprocess.run([sys.executable, script, asked], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    taken = json.loads(ran.stdout)
    assert len(taken) == len(kinds) and all(0 < bytes_ <= room for bytes_ in taken), taken
