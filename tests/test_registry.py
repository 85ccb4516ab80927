"""The tables of systems: what may be registered, and that somebody else's systems go through every command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codegrid import InputError, TwoStagePipeline, load, register, registry, sample
from codegrid.registry import TABLES, load_plugin

HERE = Path(__file__).parent
PACKAGE = "somebody_elses"


@pytest.fixture
def own_tables(monkeypatch):
    """Names that are registered within a test are forgotten after it."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})


class Thing:
    """A class to register."""


def test_a_registered_class_is_found_by_its_name_and_the_name_by_its_class(own_tables):
    register("prior", "thing", Thing)
    register("prior", "thing", Thing)  # a module that is imported twice
    assert TABLES["prior"]["thing"] is Thing and TABLES["prior"].name_of(Thing) == "thing"
    assert "thing" in TABLES["prior"] and "thing" not in TABLES["tokenizer"]
    assert next(iter(TABLES["prior"])) == "pixelcnn" and len(TABLES["prior"]) == len(list(TABLES["prior"]))


@pytest.mark.parametrize(
    "kind,name,cls,reason",
    [
        ("decoder", "thing", Thing, "`kind` 'decoder': choose one of quantizer, tokenizer, network, prior"),
        ("prior", "My Thing", Thing, "`name` 'My Thing': it must be lower-case letters"),
        ("prior", "pixelcnn", Thing, "`name` 'pixelcnn': another prior has this name already"),
        ("prior", "thing", type("Thing", (), {"options": 3}), "`cls` Thing: its `options` must be a dataclass"),
    ],
)
def test_what_cannot_be_registered_is_refused(own_tables, kind, name, cls, reason):
    with pytest.raises(InputError) as caught:
        register(kind, name, cls)
    assert reason in str(caught.value)


def test_a_second_class_of_a_name_is_refused(own_tables):
    register("quantizer", "thing", Thing)
    with pytest.raises(InputError, match="another quantizer has this name already"):
        register("quantizer", "thing", type("Other", (), {}))


def test_a_name_that_is_not_there_tells_those_that_are():
    with pytest.raises(InputError, match=r"`codebook` 'vq': no quantizer has this name: choose one of ema, gradient.*"):
        TABLES["quantizer"].check("vq", "codebook")


@pytest.mark.parametrize("text", ["raise RuntimeError('its own\\nfault')", "import nowhere", "1 +"])
def test_a_plugin_that_fails_is_one_line(text, tmp_path, monkeypatch):
    (tmp_path / "failing_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="`plugin` failing_plugin: it cannot be imported") as caught:
        load_plugin("failing_plugin")
    assert "\n" not in str(caught.value)


def test_a_plugin_in_the_working_folder_is_named_as_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("only_here_plugin.py").touch()
    with pytest.raises(InputError, match=r"or give its file, only_here_plugin\.py"):
        load_plugin("only_here_plugin")
    with pytest.raises(InputError, match=r"or give its file, MINE\.py"):
        load_plugin("nowhere_plugin")


def test_a_plugin_may_be_a_file_that_imports_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "neighbour_of_plugin.py").write_text("value = 3")
    (tmp_path / "plugin_in_a_file.py").write_text("from neighbour_of_plugin import value\nprint('imported')")
    for _ in range(2):
        load_plugin(str(tmp_path / "plugin_in_a_file.py"))
    assert sys.modules.pop("plugin_in_a_file").value == 3 and sys.modules.pop("neighbour_of_plugin")


@pytest.mark.parametrize(
    "name,reason", [("json.py", "another module is called json: rename the file"), ("no.py", "there is no such file")]
)
def test_a_file_that_cannot_be_a_plugin_is_refused(name, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json.py").write_text("raise RuntimeError")
    with pytest.raises(InputError, match=reason):
        load_plugin(str(tmp_path / name))


def test_an_installed_package_brings_its_systems_by_an_entry_point(tmp_path):
    module = "import codegrid\ncodegrid.register('prior', 'from-elsewhere', type('P', (), {}))\n"
    (tmp_path / "elsewhere.py").write_text(module)
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[codegrid]\nelsewhere = elsewhere\n")
    code = "from codegrid.registry import TABLES; print(list(TABLES['prior']))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "from-elsewhere" in result.stdout


def test_names_are_told_without_importing_torch():
    code = (
        "import sys, codegrid\nfrom codegrid import register, load, Grid, Condition\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_of_the_package_is_there():
    import codegrid

    assert set(codegrid.__all__) <= set(dir(codegrid))
    for name in codegrid.__all__:
        assert getattr(codegrid, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'VQGAN2'"):
        _ = codegrid.VQGAN2


@pytest.fixture(scope="module")
def own_run(bars_file, tmp_path_factory):
    """A run with somebody else's tokenizer and prior, trained by the commands."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "packages" / PACKAGE).mkdir(parents=True)
    shutil.copy(HERE / "own_systems.py", folder / "packages" / PACKAGE / "__init__.py")
    data = ("--dataset", "npz", "--data-root", bars_file)
    tiny = ("--steps", "40", "--batch-size", "16", "--lr", "0.05", "--precision", "fp32", "--validate-every", "20")
    tokenizer, codes, prior = folder / "run" / "tokenizer", folder / "run" / "codes", folder / "run" / "prior"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})
        patch.syspath_prepend(folder / "packages")
        patch.delitem(sys.modules, PACKAGE, raising=False)
        for name, *flags in (
            ("train_tokenizer", *data, "--model", "own-patch", "--quantizer", "own-sign", "--sign-bits", "3", *tiny,
             "--output", tokenizer),
            ("export_codes", *data, "--tokenizer", tokenizer, "--output", codes),
            ("train_prior", "--codes", codes, "--model", "own-count", "--smoothing", "0.5", *tiny, "--output", prior),
        ):  # fmt: skip
            call_command(patch, name, *flags, "--plugin", PACKAGE)
        yield folder
    sys.modules.pop(PACKAGE, None)


def call_command(patch, name, *flags):
    patch.setattr(sys, "argv", [f"codegrid-{name}", *map(str, flags)])
    __import__(f"codegrid.pipelines.{name}", fromlist=["main"]).main()


def test_a_system_from_outside_is_trained_saved_and_loaded(own_run):
    tokenizer, prior = load(own_run / "run" / "tokenizer"), load(own_run / "run" / "prior")
    assert (type(tokenizer).__name__, type(prior).__name__) == ("PatchTokenizer", "CountingPrior")
    assert tokenizer.quantizer.bits == 3 and prior.smoothing == 0.5 and len(tokenizer.layout) == 2
    record = json.loads((own_run / "run" / "tokenizer" / "run.json").read_text())
    assert record["settings"]["sign_bits"] == 3 and record["settings"]["patch"] == 4
    assert "# Prior own-count\n" in (own_run / "run" / "prior" / "README.md").read_text()


def test_a_system_from_outside_draws_from_python(own_run):
    prior = load(own_run / "run" / "prior")
    codes = sample(prior, 3, labels=[0, 1, 1], seed=1, temperature=0.9)
    assert [tuple(grid.shape) for grid in codes] == [(3, 3, 5)] * 2
    pipeline = TwoStagePipeline.from_pretrained(own_run / "run")
    drawn = pipeline.sample(3, labels=[0, 1, 1], seed=1, temperature=0.9)
    assert all(map(torch.equal, drawn.codes, codes)) and drawn.images.shape == (3, 1, 12, 20)
    kept, of_images = pipeline.complete(drawn.images, keep=1, labels=[0]).codes, pipeline.tokenizer.encode(drawn.images)
    assert all(torch.equal(grid[:, 0], mine[:, 0]) for grid, mine in zip(kept, of_images, strict=True))


PARTS = "--tokenizer {run}/tokenizer --prior {run}/prior"
USES = [
    ("sample", f"{PARTS} --num-samples 4 --labels 0 1 0 1", "samples.png"),
    ("decode_codes", "--tokenizer {run}/tokenizer --codes {run}/codes", "images.png"),
    ("evaluate", f"{PARTS} --dataset npz --data-root {{bars}}", "metrics.json"),
    (
        "plot",
        f"{PARTS} --dataset npz --data-root {{bars}} --codes {{run}}/codes --what codes codebook grids samples",
        "samples.png",
    ),
    ("doctor", "--run {run} --dataset npz --data-root {bars} --num-samples 8", "doctor.json"),
]


@pytest.mark.parametrize("name,flags,left", USES, ids=[name for name, *_ in USES])
def test_every_command_takes_systems_from_outside(name, flags, left, own_run, bars_file, run_script, tmp_path):
    words = flags.format(run=own_run / "run", bars=bars_file).split()
    done = run_script(name, *words, "--output", tmp_path / "out", "--plugin", PACKAGE)
    assert done.code == 0, done.err
    assert (tmp_path / "out" / left).stat().st_size > 0


def test_a_system_that_is_not_registered_is_refused_by_name(own_run, tmp_path, run_script, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})
    done = run_script("sample", "--tokenizer", own_run / "run/tokenizer", "--prior", own_run / "run/prior",
                      "--output", tmp_path / "out")  # fmt: skip
    assert done.code == 2
    assert (
        "holds a tokenizer (own-patch), which is not registered: name the module that registers it (--plugin"
        in done.err
    )
    done = run_script(
        "train_prior", "--codes", own_run / "run/codes", "--output", tmp_path / "p", "--model", "own-count"
    )
    assert done.code == 2 and "--model 'own-count': no prior has this name" in done.err
