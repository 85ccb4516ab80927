"""Recipes: settings in range that fit together, commands that make the same settings, claims, and whole runs."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from codegrid.errors import InputError
from codegrid.pipelines.recipe import Recipe
from codegrid.pipelines.running.flags import parse
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.training import prior
from codegrid.recipes.run import RECIPES, make_recipe, run_recipe

PAPER = [name for name, make in RECIPES.items() if make.__module__ == "codegrid.recipes.paper"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_of_a_recipe_make_its_settings(name):
    recipe = RECIPES[name]()
    for command, settings in zip(recipe.commands(), recipe.steps(), strict=True):
        codegrid, _, *flags = shlex.split(command)
        assert codegrid == "codegrid" and parse(type(settings), flags) == settings


@pytest.mark.parametrize("name", RECIPES)
def test_the_steps_of_a_recipe_fit_together(name):
    recipe = RECIPES[name]("somewhere")
    folder = recipe.tokenizer.output
    users = (recipe.codes, recipe.validation_codes, recipe.samples, recipe.metrics)
    assert {step.tokenizer for step in users} == {(folder,)}
    for its in recipe.priors:
        assert (its.codes, its.validation_codes) == (recipe.codes.output, recipe.validation_codes.output)
        resolve_options(its)  # raises where an option is not one of the model's
    assert (recipe.codes.split, recipe.validation_codes.split) == ("train", "test")
    assert recipe.samples.prior == recipe.metrics.prior == tuple(its.output for its in recipe.priors)
    images = {(step.dataset, step.data_root) for step in (recipe.tokenizer, *users[:2], recipe.metrics)}
    assert len(images) == 1 and all(step.output.startswith("somewhere/") for step in recipe.steps())


def test_an_empty_output_is_the_default_and_not_the_folder_one_is_in():
    assert make_recipe(Recipe(name="digits", output="")).tokenizer.output == "runs/demo/tokenizer"


def test_the_prior_of_the_demo_can_be_guided_and_asked_without_a_label():
    recipe = RECIPES["digits"]()
    assert resolve_options(recipe.priors[0])["label_dropout"] > 0 and recipe.samples.guidance_scale > (1.0,)


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_has_its_settings(name):
    tokenizer = RECIPES[name]().tokenizer
    options = resolve_options(tokenizer)
    assert (options["num_embeddings"], options["embedding_dim"], options["commitment_cost"]) == (512, 64, 0.25)
    assert (options["hidden_channels"], options["downsampling"]) == (256, 4)
    assert (tokenizer.quantizer, tokenizer.lr, tokenizer.lr_schedule) == ("gradient", 2e-4, "constant")
    assert (tokenizer.steps, tokenizer.batch_size) == (250_000, 128)


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_of_a_recipe_is_a_claim_with_its_command(name):
    claim = inspect.getdoc(RECIPES[name])
    command = re.search("^Command: codegrid recipe ([^,\n]+)", claim, re.MULTILINE)[1]
    assert make_recipe(parse(Recipe, command.split())) == RECIPES[name]()
    told = [re.search(f"^{what}: .*[0-9]", claim, re.MULTILINE) for what in ("Machine", "Minutes", "Figures")]
    assert all(told) or "\nMachine, minutes and figures: not measured" in claim


def test_recipes_are_listed_and_printed_as_commands_without_torch():
    code = """
import sys
from codegrid.pipelines.recipe import Recipe
from codegrid.recipes.run import run_recipe
run_recipe(Recipe())
run_recipe(Recipe(name="cifar10", data_root="C", dry_run=True))
sys.exit("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, make in RECIPES.items():
        assert f"{name}\n  {inspect.getdoc(make).splitlines()[0]}\n" in done.stdout
    assert "\n".join(RECIPES["cifar10"](data_root="C").commands()) in done.stdout


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"name": "cifar"}, "there is no recipe cifar: did you mean cifar10?"),
        ({"name": "x"}, "there is no recipe x: choose one of digits, mnist, "),
        ({"name": "digits", "data_root": "D"}, "`data_root`: the recipe digits comes with its images: leave it out"),
    ],
)
def test_a_recipe_that_cannot_be_made_is_refused(settings, reason):
    with pytest.raises(InputError) as caught:
        run_recipe(Recipe(**settings))
    assert reason in str(caught.value)


@pytest.fixture
def toy(bars_file, monkeypatch):
    """A recipe of bars with two priors, whose models learn for a moment."""

    def make(output="runs/toy", data_root=str(bars_file)):
        """Bars."""
        whole, images = RECIPES["hierarchy"](output), {"dataset": "npz", "data_root": data_root}
        tiny = {"steps": 2, "batch_size": 8, "precision": "fp32"}
        sizes = (
            {"num_blocks": 1, "layers_per_block": 1, "channels": 4},
            {"num_layers": 1, "channels": 4, "condition_blocks": 0},
        )
        return replace(
            whole,
            tokenizer=replace(whole.tokenizer, **images, **tiny, options={"num_embeddings": 8, "hidden_channels": 8}),
            codes=replace(whole.codes, **images),
            validation_codes=replace(whole.validation_codes, **images),
            priors=tuple(
                replace(its, **tiny, options={**options, "channels": 4})
                for its, options in zip(whole.priors, sizes, strict=True)
            ),
            samples=replace(whole.samples, num_samples=2),
            metrics=replace(whole.metrics, **images),
        )

    monkeypatch.setitem(RECIPES, "toy", make)


@pytest.mark.slow
def test_a_recipe_that_was_cut_off_goes_on_to_its_figures(toy, tmp_path, monkeypatch, capsys):
    settings = Recipe(name="toy", output=str(tmp_path / "toy"))
    whole = prior.train_prior
    with monkeypatch.context() as patch:
        patch.setattr(prior, "train_prior", lambda settings: 1 / 0 if settings.grid == (1,) else whole(settings))
        with pytest.raises(ZeroDivisionError):
            run_recipe(settings)
    trained = (tmp_path / "toy" / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    figures = run_recipe(settings)
    assert figures == json.loads((tmp_path / "toy" / "figures" / "metrics.json").read_text())
    assert (tmp_path / "toy" / "tokenizer" / "model.safetensors").stat().st_mtime_ns == trained
    said = capsys.readouterr().out
    assert "3/5 prior 2 of 2" in said and len(figures["grids"]) == 2
    assert f"{figures['bits_per_code']:.2f} bits per code" in said
    assert (tmp_path / "toy" / "samples" / "samples.png").is_file() and "toy/samples/samples.png" in said
