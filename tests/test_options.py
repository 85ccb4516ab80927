"""Options of models and quantizers: flags made from the tables, resolved for what is chosen, refused by name."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from codegrid import InputError, register, registry
from codegrid.limits import Range
from codegrid.pipelines.running.flags import parse
from codegrid.pipelines.running.options import field_docs, list_options, resolve_options
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer


@pytest.fixture
def own_tables(monkeypatch):
    """Names that are registered within a test are forgotten after it."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})


def train_tokenizer(*flags):
    return parse(TrainTokenizer, ["--output", "out", *flags])


def test_a_number_too_large_for_a_float_is_in_no_range():
    assert not Range(0, 5).holds(10**400) and not Range(0, 5).holds(float("nan")) and Range(0).holds(10**400)


def test_an_option_that_is_not_given_is_left_to_the_model():
    assert train_tokenizer().options == {}
    assert resolve_options(train_tokenizer())["num_embeddings"] == 512
    assert resolve_options(TrainPrior(codes="c", output="o"))["num_layers"] == 15


def test_options_of_model_and_quantizer_are_resolved_together_with_their_defaults():
    settings = train_tokenizer("--num-embeddings", "256", "--hidden-channels", "64")
    assert settings.options == {"num_embeddings": 256, "hidden_channels": 64}
    resolved = resolve_options(settings)
    assert (resolved["num_embeddings"], resolved["hidden_channels"], resolved["downsampling"]) == (256, 64, 4)
    assert "fsq_levels" not in resolved and "anchors" not in resolved


@pytest.mark.parametrize(
    "flags,options",
    [
        ("--quantizer fsq --fsq-levels 8 5 5", {"fsq_levels": (8, 5, 5)}),
        ("--quantizer clustered --anchors closest --anchor-once", {"anchors": "closest", "anchor_once": True}),
        ("--quantizer residual --num-quantizers 3 --codebook gradient", {"num_quantizers": 3, "codebook": "gradient"}),
        ("--revival-threshold 0", {"revival_threshold": 0.0}),
    ],
)
def test_flags_become_options(flags, options):
    settings = train_tokenizer(*flags.split())
    assert settings.options == options
    assert options.items() <= resolve_options(settings).items()


@pytest.mark.parametrize(
    "settings,reason",
    [
        (
            TrainTokenizer(output="o", options={"fsq_levels": (8, 8)}),
            "`fsq_levels`: the ema quantizer has no such option: choose `quantizer` fsq, or leave it out",
        ),
        (
            TrainTokenizer(output="o", quantizer="fsq", options={"num_embeddings": 8}),
            "`num_embeddings`: the fsq quantizer has no such option: choose `quantizer` ema, gradient",
        ),
        (TrainTokenizer(output="o", options={"layers": 3}), "`layers`: no tokenizer or quantizer has such an option"),
        (TrainPrior(codes="c", output="o", options={"depth": 3}), "`depth`: no prior has such an option"),
        (TrainPrior(codes="c", output="o", options={"channels": 0}), "`channels` 0: it must be"),
        (TrainTokenizer(output="o", quantizer="vq"), "`quantizer` 'vq': no quantizer has this name: choose one of ema"),
        (
            TrainPrior(codes="c", output="o", model="rnn"),
            "`model` 'rnn': no prior has this name: choose one of pixelcnn",
        ),
    ],
    ids=str,
)
def test_what_the_chosen_systems_do_not_have_is_refused_by_name(settings, reason):
    with pytest.raises(InputError) as caught:
        resolve_options(settings)
    assert reason in str(caught.value)


def test_every_option_says_what_it_is_what_it_belongs_to_and_its_default():
    for settings_type in (TrainTokenizer, TrainPrior):
        for option in list_options(settings_type).values():
            assert (
                option.help
                and option.defaults
                and option.group.startswith(("--model ", "--quantizer ", "--decoder ", "--network "))
            )
    options = list_options(TrainTokenizer)
    assert options["fsq_levels"].group == "--quantizer fsq"
    assert set(options["anchors"].defaults) >= {"clustered", "clustered-gradient"}
    assert options["hidden_channels"].defaults == {"vqvae": 128, "vqvae2": 128, "wave": 64, "codes": 64}


@dataclass(frozen=True)
class OwnOptions:
    """Options of a quantizer from outside."""

    num_embeddings: Annotated[int, Range(1, 64)] = 32
    """Entries."""
    own_switch: bool = True
    """On unless it is switched off."""


def test_a_registered_system_brings_its_flags(own_tables, capsys):
    register("quantizer", "own", type("Own", (), {"options": OwnOptions}))
    assert resolve_options(train_tokenizer("--quantizer", "own", "--no-own-switch")) == {
        **resolve_options(TrainTokenizer(output="o", quantizer="own")),
        "own_switch": False,
    }
    with pytest.raises(InputError, match="`num_embeddings` 65: it must be a whole number from 1 to 64"):
        resolve_options(train_tokenizer("--quantizer", "own", "--num-embeddings", "65"))
    with pytest.raises(SystemExit):
        train_tokenizer("--help")
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "Number K of codebook entries. (default: ema 512, gradient 512" in text and "own 32)" in text
    names = ",".join(registry.TABLES["quantizer"])
    assert "--no-own-switch" in text and names.endswith(",own") and f"{{{names}}}" in text.replace(" ", "")


def test_an_option_with_the_name_of_a_setting_is_refused(own_tables):
    options = dataclass(frozen=True)(type("Options", (), {"__annotations__": {"steps": int}, "steps": 3}))
    register("quantizer", "own", type("Own", (), {"options": options}))
    with pytest.raises(InputError, match="`steps`, an option of the quantizer own, is also a setting"):
        list_options(TrainTokenizer)


def test_an_option_with_the_name_of_a_built_in_one_must_have_its_type(own_tables):
    options = dataclass(frozen=True)(type("Options", (), {"__annotations__": {"decay": str}, "decay": "fast"}))
    register("quantizer", "own", type("Own", (), {"options": options}))
    with pytest.raises(InputError, match="`decay`, an option of the quantizer own, has another type in ema: rename it"):
        list_options(TrainTokenizer)


def test_the_text_below_a_field_is_its_help_and_bases_have_theirs():
    @dataclass(frozen=True)
    class Child(OwnOptions):
        """Of its own."""

        more: int = 1
        """Two
        lines."""
        silent: int = 2

    assert field_docs(Child) == {"num_embeddings": "Entries.", "own_switch": "On unless it is switched off.",
                                 "more": "Two lines."}  # fmt: skip
