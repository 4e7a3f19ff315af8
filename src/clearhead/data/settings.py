"""The small JSON files beside a checkpoint's weights that say how texts, pictures and sounds become numbers."""

import json
from pathlib import Path
from typing import Any

from clearhead.errors import CheckpointError

PREPROCESSOR = "preprocessor_config.json"  # of pictures or of sounds


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; CheckpointError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Get the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
