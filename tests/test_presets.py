"""The commands of docs/presets.md: the flags are there, and the values are in range."""

import re
import shlex
from dataclasses import asdict

import pytest
import tyro
from test_layout import ROOT

from codegrid.data.sources import SOURCES
from codegrid.pipelines.running import configs, use_configs
from codegrid.pipelines.running.checks import check_ranges

SCRIPTS = {
    "train_tokenizer": configs.TrainTokenizer,
    "export_codes": configs.ExportCodes,
    "train_prior": configs.TrainPrior,
    "sample": use_configs.Sample,
    "evaluate": use_configs.Evaluate,
}
SECTIONS = dict(re.findall(r"## (.+?)\n.*?```\n(.*?)```", (ROOT / "docs" / "presets.md").read_text("utf-8"), re.DOTALL))


def parse(commands):
    """The settings of each command, in turn."""
    settings = []
    for line in commands.replace("\\\n", " ").splitlines():
        python, m, module, *flags = shlex.split(line)
        assert (python, m) == ("python", "-m") and module.startswith("pipelines.")
        settings.append(tyro.cli(SCRIPTS[module.removeprefix("pipelines.")], args=flags))
    return settings


def test_there_is_a_preset_for_each_data_set():
    assert set(SECTIONS) == {"MNIST", "CIFAR-10", "Faces at 128", "ImageNet at 128", "Lab frames at 84"}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_command_of_a_preset_is_understood(name):
    for settings in parse(SECTIONS[name]):
        check_ranges(asdict(settings))


@pytest.mark.parametrize("name", SECTIONS)
def test_the_commands_of_a_preset_fit_together_and_have_the_settings_of_the_paper(name):
    tokenizer, codes, codes_test, prior, sample, evaluate = parse(SECTIONS[name])
    assert (tokenizer.num_embeddings, tokenizer.embedding_dim, tokenizer.commitment_cost) == (512, 64, 0.25)
    assert (tokenizer.lr, tokenizer.lr_schedule) == (2e-4, "constant")
    assert (tokenizer.steps, tokenizer.batch_size, tokenizer.downsampling) == (250_000, 128, 4)
    assert {part.tokenizer for part in (codes, codes_test, sample, evaluate)} == {tokenizer.output}
    assert (prior.codes, prior.validation_codes) == (codes.output, codes_test.output)
    assert (codes.split, codes_test.split) == ("train", "test") and sample.prior == evaluate.prior == prior.output
    of_data = {(part.dataset, part.data_root) for part in (tokenizer, codes, codes_test, evaluate)}
    assert len(of_data) == 1 and tokenizer.dataset in SOURCES


def test_a_flag_that_is_not_there_would_be_noticed():
    with pytest.raises(SystemExit):
        parse("python -m pipelines.train_prior --codes a --output b --layers 3")
