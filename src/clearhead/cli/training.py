"""`clearhead train`: hand a recipe to the training room and say where the result is."""

from pathlib import Path

from clearhead.cli.output import answer


def run(
    recipe: Path, *, data: Path | None, start: str | None, out: Path | None, resume: bool, device: str | None
) -> None:
    """Train by the recipe; what a person sees meanwhile is on stderr, the folder is on stdout."""
    from clearhead.training.run import run_recipe

    folder = run_recipe(recipe, data=data, start=start, out=out, resume=resume, device=device)
    answer(str(folder))
