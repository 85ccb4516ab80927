"""Recipes: their settings are in range and fit together, and their commands make the same settings."""

import shlex

import pytest

from codegrid.pipelines.running.cli import parse
from codegrid.pipelines.running.options import resolve_options
from codegrid.recipes.digits import digits
from codegrid.recipes.paper import RECIPES

ALL = {"digits": digits, **RECIPES}


@pytest.mark.parametrize("name", ALL)
def test_the_commands_of_a_recipe_make_its_settings(name):
    recipe = ALL[name]()
    for command, settings in zip(recipe.commands(), recipe.steps(), strict=True):
        codegrid, _, *flags = shlex.split(command)
        assert codegrid == "codegrid" and parse(type(settings), flags) == settings


@pytest.mark.parametrize("name", ALL)
def test_the_steps_of_a_recipe_fit_together(name):
    recipe = ALL[name]("somewhere")
    folder = recipe.tokenizer.output
    users = (recipe.codes, recipe.validation_codes, recipe.samples, recipe.metrics)
    assert {step.tokenizer for step in users} == {folder}
    assert (recipe.prior.codes, recipe.prior.validation_codes) == (recipe.codes.output, recipe.validation_codes.output)
    assert (recipe.codes.split, recipe.validation_codes.split) == ("train", "test")
    assert recipe.samples.prior == recipe.metrics.prior == (recipe.prior.output,)
    images = {(step.dataset, step.data_root) for step in (recipe.tokenizer, *users[:2], recipe.metrics)}
    assert len(images) == 1 and all(step.output.startswith("somewhere/") for step in recipe.steps())
    resolve_options(recipe.prior)  # raises where an option is not one of the model's


def test_the_prior_of_the_demo_can_be_guided_and_asked_without_a_label():
    recipe = digits()
    assert resolve_options(recipe.prior)["label_dropout"] > 0 and recipe.samples.guidance_scale > (1.0,)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_paper_has_its_settings(name):
    tokenizer = RECIPES[name]().tokenizer
    options = resolve_options(tokenizer)
    assert (options["num_embeddings"], options["embedding_dim"], options["commitment_cost"]) == (512, 64, 0.25)
    assert (options["hidden_channels"], options["downsampling"]) == (256, 4)
    assert (tokenizer.quantizer, tokenizer.lr, tokenizer.lr_schedule) == ("gradient", 2e-4, "constant")
    assert (tokenizer.steps, tokenizer.batch_size) == (250_000, 128)
