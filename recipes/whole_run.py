"""A whole run as settings: steps that are run one after another, or printed as commands to paste."""

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.flags import name_of
from codegrid.pipelines.running.settings import Command
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer


@dataclass(frozen=True)
class WholeRun:
    """Settings of each step of a run."""

    tokenizer: TrainTokenizer
    codes: ExportCodes
    validation_codes: ExportCodes
    prior: TrainPrior
    samples: Sample
    metrics: Evaluate

    def steps(self) -> list[Command]:
        """Return the settings of all steps, in the order in which they are run."""
        return [getattr(self, item.name) for item in fields(self)]

    def run(self) -> dict[str, Any]:
        """Run every step and return the metrics. Finished steps are kept, and one that was stopped continues."""
        # here: recipes are listed, and their commands printed, without torch
        from codegrid.pipelines.evaluation.run import evaluate
        from codegrid.pipelines.generation.encoding import export_codes
        from codegrid.pipelines.generation.sampling import sample
        from codegrid.pipelines.training.prior import train_prior
        from codegrid.pipelines.training.tokenizer import train_tokenizer

        print_once("1/5 tokenizer: images → codes → images")
        train_tokenizer(self.tokenizer)
        print_once("2/5 codes of the training and the held-out images")
        export_codes(self.codes)
        export_codes(self.validation_codes)
        print_once("3/5 prior: learns which codes follow which")
        train_prior(self.prior)
        print_once("4/5 samples: new codes → new images")
        sample(self.samples)
        print_once("5/5 metrics on the held-out images")
        return evaluate(self.metrics)

    def commands(self) -> list[str]:
        """Return the steps as commands to paste."""
        return [shlex.join(["codegrid", name_of(type(settings)), *flags_of(settings)]) for settings in self.steps()]


def flags_of(settings: Command) -> list[str]:
    """Return the flags of all settings that are not at their defaults."""
    flags: list[str] = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if item.name == "options":
            for name, of_option in value.items():
                flags += _flag(name, of_option)
        elif value != default:
            flags += _flag(item.name, value)
    return flags


def _flag(name: str, value: Any) -> Iterator[str]:
    yield "--" + name.replace("_", "-")
    if isinstance(value, list | tuple):
        yield from map(str, value)
    elif value is not True:
        yield str(value)
