"""What the files of sentence-transformers say of a checkpoint whose texts become vectors (Reimers & Gurevych 2019).

Beside the model they hold how vectors are pooled, and what is done to a text before it is cut in pieces. What `embed`
does not compute is refused, as it would give other vectors than its authors'.
"""

from dataclasses import dataclass
from pathlib import Path

from clearhead.cli.output import note
from clearhead.errors import CheckpointError
from clearhead.json_files import BOOLEAN, TEXT, mapping_to, read_json, shown

PROMPTS = "config_sentence_transformers.json"
TEXTS = "sentence_bert_config.json"
POOLING_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@dataclass(frozen=True)
class Before:
    """What is done to a text before it is cut in pieces.

    Attributes:
        prompt: What every text is put behind, such as `query: `.
        lowercase: Whether capital letters become small.
    """

    prompt: str = ""
    lowercase: bool = False

    @classmethod
    def of(cls, folder: Path) -> "Before":
        """Read the files of a checkpoint folder, all of which may be absent.

        Raises:
            CheckpointError: Vectors are something other than the mean over all tokens, or a file is damaged.
        """
        require_mean(folder)
        path = folder / PROMPTS
        kinds = {"prompts": mapping_to(TEXT), "default_prompt_name": TEXT}
        said = read_json(path, kinds) if path.is_file() else {}
        prompts, name = said.get("prompts") or {}, said.get("default_prompt_name")
        if name is not None and name not in prompts:
            raise CheckpointError(
                f"{path}: default_prompt_name {shown(name)} is not among the prompts, {shown(prompts)}"
            )
        prompt = prompts.get(name, "")
        if prompt:
            require_prompt_in_mean(folder)
            note(f"every text is read behind {prompt!r}, the default prompt of this checkpoint")
        path = folder / TEXTS
        return cls(prompt, path.is_file() and read_json(path, {"do_lower_case": BOOLEAN}).get("do_lower_case") is True)

    def put(self, text: str) -> str:
        """Return what the model reads of a text."""
        text = self.prompt + text
        return text.lower() if self.lowercase else text


def require_mean(folder: Path) -> None:
    """Raise CheckpointError where sentence-transformers' files say that vectors are no mean over the tokens."""
    for path in sorted(folder.glob("*_Dense/config.json")):
        raise CheckpointError(f"{path}: one more layer behind the mean over the tokens, which embed does not compute")
    for path in sorted(folder.glob("*_Pooling/config.json")):
        said = read_json(path, {"pooling_mode": TEXT, **{f"pooling_mode_{mode}": BOOLEAN for mode in POOLING_MODES}})
        modes = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is not False]
        if said.get("pooling_mode", "mean") != "mean" or modes not in ([], ["pooling_mode_mean_tokens"]):
            asked = " and ".join(modes) or f"pooling_mode {said['pooling_mode']!r}"
            raise CheckpointError(f"{path}: {asked}, but embed takes the mean over the tokens: other vectors than its")


def require_prompt_in_mean(folder: Path) -> None:
    """Raise CheckpointError where the tokens of a prompt are to be left out of the mean."""
    for path in sorted(folder.glob("*_Pooling/config.json")):
        if read_json(path, {"include_prompt": BOOLEAN}).get("include_prompt") is False:
            raise CheckpointError(f"{path}: include_prompt false, but embed takes the mean over all tokens")
