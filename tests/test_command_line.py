"""The command line: `codegrid NAME`, flags, --help without torch, and how errors end."""

import errno
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest

from codegrid import InputError, command, progress
from codegrid.limits import Range
from codegrid.pipelines.compress import Compress
from codegrid.pipelines.convert import Convert
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.decompress import Decompress
from codegrid.pipelines.demo import Demo
from codegrid.pipelines.doctor import Doctor
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.export_model import ExportModel
from codegrid.pipelines.import_model import ImportModel
from codegrid.pipelines.plot import Plot
from codegrid.pipelines.rank_captions import RankCaptions
from codegrid.pipelines.recipe import Recipe
from codegrid.pipelines.running.cli import Stopped, print_once, run_command
from codegrid.pipelines.running.flags import name_of, parse
from codegrid.pipelines.running.options import flag_of
from codegrid.pipelines.running.settings import GivesFigures
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.view import View
from codegrid.progress import progress_bar

SETTINGS = (
    TrainTokenizer, ExportCodes, TrainPrior, Sample, DecodeCodes, Convert, Evaluate, Plot, Doctor, View, Demo, Recipe,
    ImportModel, ExportModel, Compress, Decompress, RankCaptions,
)  # fmt: skip

POSITIONAL = ("name",)  # settings that are words and no flags

# every flag that has been told to users, with a value
PARTS = "--tokenizer t --prior p --output o --device cpu --threads 1 -v --quiet --overwrite --run r"
DATA = "--dataset npz --data-root d --skip-unreadable --num-workers 1 --dry-run"
DRAWING = (
    "--temperature 0.9 --top-k 50 --top-p 0.95 --guidance-scale 2 --guidance-schedule growing --num-inference-steps 8 "
    "--choice-temperature 4.5 --unmask-order halton --mask-schedule arccos --solver dpm-solver --backend auto"
)
TRAINING = (
    "--steps 10 --batch-size 8 --lr 2e-4 --lr-schedule constant --precision fp32 --compile --accumulate 4 --seed 3 "
    "--device cpu --save-every 5 --validate-every 5 --init-from hf:owner/name --finish-now --log-with tensorboard "
    "--quiet --run r --dry-run --threads 2"
)
VIEWS = "--views 8 --shift 2 --flip --view-seed 1"
TOLD = [
    (TrainTokenizer, f"--output o {DATA} --image-size 48 64 {TRAINING} --model vqvae --quantizer gradient"),
    (TrainTokenizer, "--output o --num-embeddings 512 --embedding-dim 64 --hidden-channels 256 --downsampling 4"),
    (TrainTokenizer, "--output o --commitment-cost 0.25 --decay 0.9 --revival-threshold 0.3 --distance cosine"),
    (TrainTokenizer, "--output o --kmeans-steps 10 --anchors closest --anchor-once --quantizer clustered"),
    (TrainTokenizer, "--output o --shuffle-buffer 5000 --flip --shift 2 --crop 0.8 --quantizer fsq --fsq-levels 8 8 8"),
    (TrainTokenizer, "--output o --quantizer residual --num-quantizers 4 --codebook clustered --overwrite"),
    (TrainTokenizer, "--output o --network resnet --num-residual-blocks 1"),
    (TrainTokenizer, "--output o --network vqgan --channel-multipliers 1 2 4 --attention-sizes 0 1 --norm-groups 8"),
    (TrainTokenizer, "--output o --network dalle --start-channels 64"),
    (TrainTokenizer, "--output o --network notebook --rectified-skips first"),
    (ExportModel, "--tokenizer t --to onnx --prior p --run r --output o --overwrite --quiet"),
    (
        ImportModel,
        "--from a.ckpt --source taming --size 256 --model-config c.yaml --run r --output o --overwrite --quiet",
    ),
    (
        TrainTokenizer,
        "--output o --perceptual-weight 1 --perceptual m.py:f --adversarial-weight 0.5 --lecam-weight 0.1"
        " --diff-augment color cutout",
    ),
    (
        TrainTokenizer,
        "--output o --adversarial-weight 1 --adversarial-loss non-saturating --discriminator-start 9 --fixed-weight "
        "--discriminator-warmup 5 --discriminator-lr 1e-4 --discriminator-channels 8 --discriminator-layers 2",
    ),
    (TrainTokenizer, "--output o --adversarial-weight 1 --max-adaptive-weight 2"),
    (TrainTokenizer, "--output o --model codes --over c --validation-codes v --num-latents 3 --channels 8 --dropout 0"),
    (ExportCodes, f"--tokenizer t --output o {DATA} --split test --format parquet --batch-size 8 --overwrite --quiet"),
    (ExportCodes, "--tokenizer t --run r --device cpu --threads 3 --verbose"),
    (TrainPrior, f"--codes c --output o --validation-codes v {TRAINING} --channels 8 --num-layers 2 --dropout 0.2"),
    (TrainPrior, "--codes c --output o --label-dropout 0 --ema-decay 0.9 --keep last --max-norm 2 --weight-decay 0"),
    (TrainPrior, f"--codes c.npz --tokenizer t --output o --grid 1 2 --shard --verbose --views-until 0.5 {VIEWS}"),
    (TrainPrior, "--codes c --tokenizer t --output o --model pixelcnn --overwrite --captions c.jsonl --unconditional"),
    (TrainPrior, "--codes c --output o --num-words 2048 --text-length 24 --ignore-captions --ignore-labels"),
    (
        Sample,
        f"{PARTS} {DRAWING} --num-samples 3 --labels 7 cat none :3 --seed 1 --batch-size 8 --format codegrid --dry-run",
    ),
    (Sample, "--tokenizer t --prior p --output o --complete c --mask 8 8 12 12 --paste --prompts heart cat"),
    (Sample, f"{PARTS} --complete c --keep-rows 4 --shard-size 10 --compile --reject-with r --reject-keep 0.5"),
    (Sample, "--tokenizer t u --prior p q r --output o --temperature 1 0.9 0.8 --backend plain"),
    (Sample, "--tokenizer t --prior p --output o --start codes --start-at 3 --frames 4 --actions left 2"),
    (ExportCodes, f"--tokenizer t --output o --dataset pictures --captions c.csv --split all {VIEWS}"),
    (DecodeCodes, "--tokenizer t --codes c --output o --format png --shard-size 10 --device cpu --threads 1 --dry-run"),
    (DecodeCodes, "--tokenizer t --codes c --run r --batch-size 8 --view 3 --overwrite --quiet"),
    (Evaluate, f"{PARTS} {DATA} {DRAWING} --split train --features a.b:c --num-samples 10 --seed 1 --batch-size 8"),
    (Evaluate, "--images a --against b --features inception --json"),
    (Evaluate, f"{PARTS} --features lite0 --num-samples 9 --reject-with classifier --reject-keep 1 --captions c.tsv"),
    (
        Plot,
        f"{PARTS} {DATA} --codes c --split train --beside b c --what codes places --projection umap --seed 1 "
        "--batch-size 8",
    ),
    (Doctor, "--run r --tokenizer t --prior p --codes c --validation-codes v --dataset mnist --data-root d"),
    (
        Doctor,
        "--num-samples None --seed 1 --output o --threads 1 --overwrite --quiet --json --skip-unreadable --strict",
    ),
    (View, "--run r --host 0.0.0.0 --port 80 --device cpu --quiet --trusted-hosts a b"),
    (View, "--tokenizer t --dataset npz --data-root d --threads 4"),
    (View, "--tokenizer t --prior p q"),
    (Demo, "--output o --plugin json --quiet --json"),
    (Recipe, "cifar10 --output o --data-root d --dry-run --quiet --json"),
    (Recipe, ""),
    (TrainTokenizer, "--output o --model wave --dataset speech --data-root d --sampling-rate 8000 --window 4096 "),
    (TrainTokenizer, "--output o --model wave --strides 4 4 2 --decoder wavenet --num-cycles 1 --frozen-codes"),
    (DecodeCodes, "--tokenizer t --codes c --output o --format wav"),
    (Evaluate, "--tokenizer t --output o --phonemes"),
    (Evaluate, "--tokenizer t --prior p --output o --features lite0 --num-samples 8 --skip-likelihood"),
    (Convert, "--tokenizer t --input a.wav --speaker ann --output o --seed 1 --batch-size 4 --skip-unreadable"),
    (
        Convert,
        "--tokenizer t --run r --input d --speaker ann --device cpu --threads 1 --overwrite --quiet -v --dry-run",
    ),
    (TrainTokenizer, "--output o --half"),
    (TrainPrior, "--codes c --output o --half"),
    *((kind, "--pretrained digits --output o ") for kind in (ExportCodes, Sample, Evaluate, Plot, Doctor, ExportModel)),
    *((kind, "--pretrained digits --codes c --output o ") for kind in (DecodeCodes, Compress)),
    (Compress, f"{PARTS} {DATA} --split all --lossless --backend plain --batch-size 8"),
    (Decompress, f"{PARTS} --file f --format codes --batch-size 8"),
    (Sample, "--tokenizer t --prior p --output o --start c --start-at 1 5 --frames 3 --actions forward "),
    (Decompress, "--pretrained digits --file f --output o "),
    (RankCaptions, f"{PARTS} --images d --captions heart car --seed 1 --batch-size 8 --dry-run"),
    (View, "--pretrained digits "),
]


@pytest.mark.parametrize("settings_type,flags", TOLD)
def test_every_flag_that_users_know_is_understood(settings_type, flags):
    assert isinstance(parse(settings_type, flags.split()), settings_type)


@pytest.mark.parametrize("settings_type,flags", [TOLD[0], TOLD[11]])
def test_flags_mean_the_same_whether_all_or_only_those_that_are_given_are_told_to_tyro(
    settings_type, flags, monkeypatch
):
    few = parse(settings_type, flags.split())
    monkeypatch.setattr("codegrid.pipelines.running.flags._parse_named", lambda groups, argv: None)
    assert parse(settings_type, flags.split()) == few


@pytest.mark.parametrize("settings_type", SETTINGS, ids=name_of)
def test_every_setting_is_a_flag_that_some_command_line_above_gives(settings_type):
    given = " ".join(flags for kind, flags in TOLD if kind is settings_type)
    for field in fields(settings_type):
        if field.name not in ("options", "plugin", "verbose", "device", "quiet", *POSITIONAL):
            assert f"{flag_of(field.name)} " in given + " "


def test_no_command_is_left_out_of_these_tests():
    assert {name_of(settings_type) for settings_type in SETTINGS} == set(command.COMMANDS)


def test_values_arrive_with_their_types():
    flags = "--tokenizer t --prior p q --output o --temperature 1 0.5 --labels 7 cat"
    settings = parse(Sample, flags.split())
    assert (settings.prior, settings.temperature, settings.labels) == (("p", "q"), (1.0, 0.5), ("7", "cat"))
    assert [config.temperature for config in settings.configs(2)] == [1.0, 0.5]
    with pytest.raises(InputError, match="`temperature`: 2 values for 3 priors"):
        settings.configs(3)


@pytest.mark.parametrize(
    "flags,words",
    [
        ("--run r --nmu-samples 3", "Unrecognized options: --nmu-samples, 3: did you mean --num-samples?"),
        ("--run r three", "Unrecognized options: three: `codegrid sample --help` explains the flags"),
        ("--run r --num-samples many", "^--num-samples many: it must be a whole number: `codegrid sample --help`"),
        ("--run r --seed 1e3", "^--seed 1e3: it must be a whole number: `codegrid sample --help`"),
        ("--run r --format gif", "invalid choice 'gif' for argument '--format'.*: `codegrid sample --help`"),
        ("--run", "Missing value for argument '--run'.*: `codegrid sample --help`"),
    ],
)
def test_flags_that_make_no_sense_are_one_line_with_a_way_out(flags, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        parse(Sample, flags.split())


@pytest.mark.parametrize(
    "flags,words",
    [
        ("--num-embeddings few", "--num-embeddings few: it must be a whole number: "),
        ("--fsq-levels 8 b", "--fsq-levels 8 b: it must be whole numbers: "),
        ("--lr fast", "--lr fast: it must be a number: "),
        ("--image-size 64x64", "--image-size 64x64: it must be SIZE|HEIGHT WIDTH: "),
        ("--distance far", "invalid choice 'far' for argument '--distance'"),
    ],
)
def test_values_of_another_type_are_answered_without_types_of_python(flags, words):
    with pytest.raises(InputError) as caught:
        parse(TrainTokenizer, ["--output", "o", *flags.split()])
    assert str(caught.value).startswith(words) and "None" not in str(caught.value)


def test_a_word_for_numbers_of_grids_is_answered_likewise():
    with pytest.raises(InputError, match="--grid zero: it must be whole numbers: "):
        parse(TrainPrior, ["--codes", "c", "--output", "o", "--grid", "zero"])


def test_where_only_ascii_is_printed_flags_are_answered_likewise(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    for flags, words in (
        ("--grid zéro", "--grid zéro: it must be whole numbers: "),
        ("--stepé 3", "Unrecognized options: --stepé, 3: did you mean --steps?"),
        ("--shard --codes", "Missing value for argument '--codes"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            parse(TrainPrior, ["--output", "o", *flags.split()])


def test_compile_is_a_short_form_of_the_compiled_backend():
    assert Sample(tokenizer="t", prior=("p",), output="o", compile=True).backend == "compiled"
    with pytest.raises(InputError, match="`compile` means `backend` compiled, not plain"):
        Sample(tokenizer="t", prior=("p",), output="o", compile=True, backend="plain")


@pytest.mark.parametrize("settings_type", SETTINGS, ids=name_of)
def test_help_explains_every_flag_with_its_default(settings_type, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(settings_type, ["--help"])
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert f"usage: codegrid {name_of(settings_type)}" in text
    assert "None}" not in text and "[None" not in text
    for field in fields(settings_type):
        if field.name not in ("options", *POSITIONAL):
            assert flag_of(field.name) in text
        if isinstance(field.default, str | float) and field.default is not MISSING and field.default != "":
            assert f"(default: {field.default})" in text


def test_help_answers_before_torch_is_loaded():
    code = """
import sys
from codegrid import command
for name in command.COMMANDS:
    sys.argv = ["codegrid", name, "--help"]
    try:
        command.main()
    except SystemExit as stop:
        assert not stop.code, name
sys.exit(", ".join({"torch", "numpy", "accelerate", "matplotlib"} & {*sys.modules}) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("pipelines.sample",), ("codegrid.pipelines.sample",), ("codegrid", "sample")])
def test_a_command_is_also_a_module_to_run(words):
    asked = [sys.executable, "-m", *words, "--help"]
    done = subprocess.run(asked, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: codegrid sample" in done.stdout


def test_folders_of_a_users_own_do_not_meet_ours(tmp_path):
    for name in ("data", "pipelines", "recipes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True")
    code = "import codegrid.data, codegrid.pipelines.sample, data, pipelines, recipes"
    code += "\nassert data.mine and pipelines.mine and recipes.mine\ncodegrid.pipelines.sample.Sample"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def call(monkeypatch, capsys):
    """Run something with these words behind the program's name."""

    def run(function, *words):
        monkeypatch.setattr(sys, "argv", ["codegrid", *words])
        code = 0
        try:
            function()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


def test_codegrid_lists_its_commands(call):
    for words in ([], ["--help"]):
        done = call(command.main, *words)
        assert done.code == 0 and all(f"  {name} " in done.out for name in command.COMMANDS)
    assert call(command.main, "--version").out.startswith("codegrid 0")


@pytest.mark.parametrize("settings_type", SETTINGS, ids=name_of)
def test_every_command_tells_its_version_whatever_else_is_given(settings_type, call):
    done = call(lambda: parse(settings_type, ["--output", "o", "--version"]))
    assert done.code == 0 and done.out.startswith("codegrid 0")


@pytest.mark.parametrize("settings_type", SETTINGS, ids=name_of)
def test_flags_are_completed_under_the_name_of_the_command(settings_type, call, monkeypatch):
    done = call(lambda: parse(settings_type, ["--tyro-print-completion", "bash"]))
    name = f"codegrid-{name_of(settings_type)}"
    assert f"complete -F _tyro_{name.replace('-', '_')} {name}\n" in done.out


def test_bash_completes_commands_and_asks_them_for_their_flags(call, tmp_path):
    sample = tmp_path / "codegrid-sample"
    sample.write_text("#!/bin/sh\necho '_tyro_codegrid_sample() { COMPREPLY=(\"${COMP_WORDS[*]} in $COMP_CWORD\"); }'")
    sample.chmod(0o755)
    asks = """
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _codegrid codegrid "${@: -1}"; echo "${COMPREPLY[@]}"; }
try codegrid tr; try codegrid sample --te; complete -p codegrid-sample codegrid"""
    script = call(command.main, "--completion").out + asks
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "train-tokenizer train-prior", "codegrid-sample --te in 1",
        "complete -F _codegrid_load codegrid-sample", "complete -F _codegrid codegrid",
    ]  # fmt: skip


def test_an_unknown_command_is_refused_with_the_nearest_one(call):
    done = call(command.main, "trian-prior", "--codes", "c")
    assert done.code == 2 and done.err == "error: there is no command trian-prior: did you mean train-prior?\n"
    assert "did you mean train-tokenizer or train-prior?" in call(command.main, "train").err
    assert "`codegrid --help` lists them" in call(command.main, "xyz").err


@pytest.mark.parametrize("name", command.COMMANDS)
def test_codegrid_runs_the_command_that_the_first_word_names(name, call, monkeypatch):
    module = import_module(f"codegrid.pipelines.{name.replace('-', '_')}")
    monkeypatch.setattr(module, "main", lambda: print(sys.argv))
    assert call(command.main, name, "--output", "o").out == f"{[f'codegrid-{name}', '--output', 'o']}\n"
    assert call(command.main, name.replace("-", "_")).code == 0


@dataclass(frozen=True, kw_only=True)
class TryOut(GivesFigures):
    """Fail as told."""

    output: str = "out"
    """Where."""
    label_dropout: Annotated[float, Range(0, below=1)] = 0.0
    """A setting with a range."""


def fail(settings):
    raise fail.error


def try_out(call, error, *words):
    fail.error = error
    return call(lambda: run_command(TryOut, f"{__name__}:fail"), *words)


@pytest.mark.parametrize(
    "error,said",
    [
        (InputError("`label_dropout` 1.5: not `this`"), "error: --label-dropout 1.5: not `this`"),
        (InputError("two\nlines and \u202e"), "error: two lines and ?"),
        (OSError(errno.ENOSPC, "No space", "f"), "error: f: the disk is full"),
        (OSError(errno.EACCES, "denied"), "error: out: permission denied"),
    ],
)
def test_an_error_that_can_be_fixed_is_one_line_and_exit_code_2(call, error, said):
    done = try_out(call, error)
    assert done.code == 2 and done.err.startswith(said) and done.err.count("\n") == 1
    done = try_out(call, error, "-v")
    assert done.code == 2 and "Traceback" in done.err and done.err.splitlines()[-1].startswith(said)


def give_figures(settings):
    print("by a library")
    print_once("a report")
    for _ in progress_bar(range(3), "work"):
        pass
    return {"bits": 0.5, "of_each": (float("nan"), 1)}


def test_json_is_all_of_the_output_and_strict(call):
    done = call(lambda: run_command(TryOut, f"{__name__}:give_figures"), "--json")
    assert json.loads(done.out, parse_constant=pytest.fail) == {"bits": 0.5, "of_each": [None, 1]}
    assert done.err == "by a library\na report\n"


def test_a_quiet_command_prints_no_reports_and_its_errors(call, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHARE", 0.0)
    loud = call(lambda: run_command(TryOut, f"{__name__}:give_figures"))
    assert loud.out == "by a library\na report\n" and "work: 3 of 3, 0:00:00" in loud.err
    quiet = call(lambda: run_command(TryOut, f"{__name__}:give_figures"), "--quiet")
    assert (quiet.out, quiet.err) == ("by a library\n", "")
    assert try_out(call, InputError("wrong"), "--quiet").err == "error: wrong\n"


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), OSError("of a library"), KeyError(3)])
def test_an_error_that_nobody_can_explain_keeps_its_traceback(call, error):
    with pytest.raises(type(error)):
        try_out(call, error)


@pytest.mark.parametrize(
    "error,code,said",
    [
        (KeyboardInterrupt(), 130, "stopped; run the same command again"),
        (Stopped(signal.SIGTERM), 143, "stopped and saved; run the same command again to continue"),
    ],
)
def test_a_run_that_is_stopped_ends_as_a_shell_expects(call, error, code, said):
    done = try_out(call, error)
    assert (done.code, done.err) == (code, f"\n{said}\n")


def test_an_option_that_was_not_chosen_is_refused_before_anything_is_loaded(call):
    done = call(lambda: run_command(TrainTokenizer, "nowhere:nothing"), "--output", "o", "--fsq-levels", "8", "8")
    assert done.code == 2
    assert "error: --fsq-levels: the ema quantizer has no such option: choose --quantizer fsq, or leave it" in done.err


def test_a_value_out_of_its_range_names_the_flag(call):
    done = try_out(call, None, "--label-dropout", "1")
    assert (done.code, done.err) == (2, "error: --label-dropout 1.0: it must be a number of at least 0 and below 1\n")


@pytest.mark.parametrize("words", [("--plugin", "not_to_be_found"), ("--plugin=not_to_be_found",)])
def test_a_plugin_that_cannot_be_imported_is_named(call, words):
    done = try_out(call, None, *words)
    assert done.code == 2 and "error: --plugin not_to_be_found: it cannot be imported" in done.err


def test_a_plugin_is_imported_before_the_flags_are_read(call, monkeypatch, tmp_path):
    (tmp_path / "early_plugin.py").write_text("print('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "early_plugin", raising=False)
    assert "imported" in call(lambda: parse(TryOut, ["--plugin", "early_plugin", "--help"])).out
