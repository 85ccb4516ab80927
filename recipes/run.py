"""Recipes by name: the bodies of `codegrid recipe` and `codegrid demo`."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from codegrid.errors import InputError
from codegrid.pipelines.demo import Demo
from codegrid.pipelines.recipe import Recipe
from codegrid.pipelines.running.cli import print_once

from .digits import digits
from .hierarchy import hierarchy
from .paper import cifar10, faces128, imagenet128, lab84, mnist
from .pretrained import pretrained_cifar10, pretrained_digits, pretrained_emoji
from .whole_run import WholeRun

OF_PAPERS = (mnist, cifar10, hierarchy, faces128, imagenet128, lab84)
SHIPPED = (pretrained_digits, pretrained_emoji, pretrained_cifar10)  # for models that come with the package
RECIPES: dict[str, Callable[..., WholeRun]] = {make.__name__: make for make in (digits, *OF_PAPERS, *SHIPPED)}


def run_recipe(settings: Recipe) -> dict[str, Any]:
    """Run a recipe and return its metrics; or print its commands, or all recipes, and return those.

    Raises `InputError` if there is no such recipe, or if it takes no `data_root` but one is given.
    """
    if not settings.name:
        claims = {name: inspect.getdoc(make) or "" for name, make in RECIPES.items()}
        print_once("\n\n".join(f"{name}\n{_indented(claim)}" for name, claim in claims.items()))
        return {"recipes": claims}
    whole_run = make_recipe(settings)
    if settings.dry_run:
        print_once("\n".join(whole_run.commands()))
        return {"commands": whole_run.commands()}
    metrics = whole_run.run()
    print_once(summarize(whole_run, metrics))
    return metrics


def demo(settings: Demo) -> dict[str, Any]:
    """Run the digits recipe and return its metrics."""
    return run_recipe(Recipe(name="digits", output=settings.output))


def make_recipe(settings: Recipe) -> WholeRun:
    """Return the settings of all steps of a recipe.

    Raises `InputError` if there is no such recipe, or if it takes no `data_root` but one is given.
    """
    if settings.name not in RECIPES:
        close = get_close_matches(settings.name, RECIPES, n=1)
        meant = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(RECIPES)}"
        raise InputError(f"there is no recipe {settings.name}: {meant}")
    make = RECIPES[settings.name]
    given = {name: value for name in ("output", "data_root") if (value := getattr(settings, name))}
    if "data_root" in given and "data_root" not in inspect.signature(make).parameters:
        raise InputError(f"`data_root`: the recipe {settings.name} comes with its images: leave it out")
    return make(**given)


def summarize(whole_run: WholeRun, metrics: dict[str, Any]) -> str:
    """Return a summary of a run's figures, and where its results are."""
    run = Path(whole_run.tokenizer.output).parent
    return (
        f"\nOf {metrics['images']:,} held-out images: reconstruction error {metrics['reconstruction_error']:.3f}, "
        f"PSNR {metrics['psnr']:.1f} dB,\n{metrics['codebook_usage']:.0%} of the codebook in use, "
        f"{metrics['bits_per_code']:.2f} bits per code.\n"
        f"New images:  {whole_run.samples.output}/samples.png\n"
        f"Held-out images and reconstructions:  {whole_run.metrics.output}/reconstructions.png\n"
        f"More:  codegrid sample --run {run}; codegrid doctor --run {run}"
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
