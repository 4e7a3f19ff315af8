"""`clearhead models`: what ships, as its cards and configs say, and which published checkpoints open."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clearhead.cli.output import dump, say
from clearhead.json_files import read_json


@dataclass(frozen=True)
class Shipped:
    """A model that comes with clearhead."""

    name: str
    task: str
    labels: tuple[str, ...]
    bytes: int
    licence: str
    summary: str
    commands: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Shipped":
        """Read it from its folder: config.json, and the card README.md with its fields between two lines of ---."""
        config = read_json(folder / "config.json")
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        front, body = text.split("---\n", 2)[1:] if text.startswith("---\n") else ("", text)
        fields = dict(line.split(":", 1) for line in front.splitlines() if ":" in line and not line.startswith(" "))
        prose = [
            line.strip() for line in body.splitlines() if line.strip() and not line.startswith(("#", "<", "|", "```"))
        ]
        return cls(
            name=folder.name,
            task=fields.get("pipeline_tag", config["architectures"][0]).strip(),
            labels=tuple(config.get("id2label", {}).values()),
            bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
            licence=fields.get("license", "see its card").strip(),
            summary=prose[0].replace("*", "") if prose else "",  # no emphasis in a terminal
            commands=commands_for(config),
        )


def commands_for(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the commands that a checkpoint is for, as its config.json says."""
    from clearhead.checkpoints import FAMILIES
    from clearhead.cli.opening import verbs_of

    kind = FAMILIES[config["model_type"]].architectures[config["architectures"][0]]
    return verbs_of(kind, hears=config["model_type"] == "whisper")


def run(*, as_json: bool) -> None:
    """Print both lists."""
    from clearhead.checkpoints import FAMILIES
    from clearhead.checkpoints.files import CONFIG, DEFAULTS

    shipped = [Shipped.read(path.parent) for path in sorted(DEFAULTS.glob(f"*/{CONFIG}"))]
    families = {name: list(family.architectures) for name, family in FAMILIES.items()}
    if as_json:
        print(dump({"models": [asdict(model) for model in shipped], "families": families}))
        return
    print("Models that ship:" if shipped else "No models ship with this copy of clearhead.")
    for model in shipped:
        labels = f" ({', '.join(model.labels)})" if model.labels else ""
        say(f"  {model.name}: {model.task}{labels}, {model.bytes / 1e6:.0f} MB, {model.licence}", hanging=2)
        say(f"    {model.summary}")
        say(f"    for: {', '.join(model.commands)}")
    print()
    say("Checkpoints that open, from a folder or the hub (organisation/model), by model_type:")
    for name, architectures in families.items():
        say(f"  {name}: {', '.join(architectures)}", hanging=2)
