"""Where edits changed nothing, because attention of the layers that they name ran and was not seen.

An edit can only act on a call that is met. Next: `recordings/account.py`, which keeps what was not.
"""

from collections.abc import Sequence
from dataclasses import replace

from clearhead.seeing import arguments
from clearhead.seeing.editing.kinds import Edit
from clearhead.seeing.recordings.account import Unseen
from clearhead.seeing.recordings.recording import FEW, Recording


def unseen_of(layers: Sequence[int | str] | None, run: Recording) -> list[Unseen]:
    """Return what was not seen of the layers that an edit names; None means all."""
    if layers is None:
        return list(run.unseen)
    names = [run.names[one] if isinstance(one, int) and 0 <= one < len(run.names) else one for one in layers]
    wanted = [*names, *(str(name).partition("#")[0] for name in names)]  # `attn#2` is lost where all of `attn` is
    return [one for one in run.unseen if any(arguments.means(want, -1, one.name) for want in wanted)]


def passed_by(edit: Edit, run: Recording) -> str | None:
    """Say in which forwards an edit that was applied in others met layers that were not seen; None if in none.

    An edit that was never applied is in `Edits.unused`, with the reason.
    """
    if len(edit.waiting) == len(edit.layers or (None,)):
        return None
    found = []
    for one in unseen_of(edit.layers, run):
        later = tuple(number for number in one.forwards if number >= edit.since)
        if later or not one.forwards:
            found.append(str(replace(one, forwards=later, times=1 if len(later) < len(one.forwards) else one.times)))
    if len(found) > FEW:
        found[FEW:] = [f"and {len(found) - FEW} more"]
    return f"{edit.said} changed nothing where attention was not seen: {'; '.join(found)}" if found else None
