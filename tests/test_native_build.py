"""Native libraries on a machine where things are missing, damaged or not ours, and the backend that a run keeps."""

import json
import os
import shutil
import stat

import pytest
import torch
from test_sampling import build

from codegrid.errors import InputError
from codegrid.native import build as building
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.native.structures import PIXELCNN
from codegrid.stage2_prior.sampling import backends

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The folder of the libraries, in a place of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codegrid"


@pytest.fixture
def fresh(own_cache):
    """Nothing is known of this machine yet, and nothing was said."""

    def forget():
        building.library_or_reason.cache_clear()
        backends.say_once.cache_clear()

    forget()
    yield own_cache
    forget()


@needs_compiler
def test_the_library_is_compiled_once_and_a_damaged_or_foreign_one_again(own_cache, monkeypatch):
    lanes = building.load_library(PIXELCNN, "-O0").pixelcnn_lanes()
    (path,) = own_cache.iterdir()
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
    good, commands = path.read_bytes(), []

    def compile_by_copying(command):
        commands.append(command)
        if "-o" in command:
            (own_cache / command[command.index("-o") + 1]).write_bytes(good)
        return b"macros"

    monkeypatch.setattr(building, "run_compiler", compile_by_copying)
    for damage, made in (
        (None, 1),  # another answer of the compiler: another processor, for example
        (None, 0),
        (lambda file: file.write_bytes(good[:100]), 1),
        (lambda file: file.write_bytes(good[:-1] + b"x"), 1),
        (lambda file: file.symlink_to(path), 1),
    ):
        if damage:
            (file,) = [file for file in own_cache.iterdir() if file != path]
            file.unlink()  # in place of one that is loaded
            damage(file)
        commands.clear()
        assert building.load_library(PIXELCNN, "-O0").pixelcnn_lanes() == lanes
        assert sum("-o" in command for command in commands) == made
        assert len(list(own_cache.iterdir())) == 2 and path.read_bytes() == good


def break_by_writing(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def break_by_a_file(folder):
    folder.parent.mkdir()
    folder.touch()


def break_by_a_link(folder):
    folder.parent.mkdir()
    folder.symlink_to("/tmp")


BROKEN = {
    "others can write": (break_by_writing, "others can write into .*XDG_CACHE_HOME"),
    "a file": (break_by_a_file, "cannot be kept or loaded .*exists"),
    "a link": (break_by_a_link, "is not a folder"),
    "no place": (lambda folder: folder.parent.touch(), "cannot be kept or loaded"),
}


@needs_compiler
@pytest.mark.parametrize("damage,reason", BROKEN.values(), ids=BROKEN)
def test_a_cache_that_cannot_be_trusted_is_not_used(damage, reason, own_cache):
    damage(own_cache)
    with pytest.raises(InputError, match=reason):
        building.load_library(PIXELCNN, "-O0")


@needs_compiler
def test_a_cache_of_another_user_is_not_used(own_cache, monkeypatch):
    building.cache_folder()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(InputError, match="others can write into"):
        building.load_library(PIXELCNN, "-O0")


def fail_without_compiler(patch):
    patch.setenv("PATH", "")
    patch.delenv("CXX", raising=False)


def fail_by_compiler(patch):
    patch.setenv("CXX", "false")


def fail_by_source(patch):
    patch.setattr(building, "FLAGS", (*building.FLAGS, "-include", "missing.h"))


FAILING = {
    "no compiler": (fail_without_compiler, r"needs a C\+\+ compiler: install one, g\+\+ for example"),
    "one that fails": (fail_by_compiler, "was not compiled: false fails .exit code 1."),
    "an error": (fail_by_source, "was not compiled: .*error.*missing.h"),
}


@pytest.mark.parametrize("damage,reason", FAILING.values(), ids=FAILING)
def test_without_a_library_auto_takes_pytorch_and_says_why_once(damage, reason, fresh, monkeypatch, capsys):
    if damage is fail_by_source and not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")
    damage(monkeypatch)
    prior = build().float()
    with pytest.raises(InputError, match=f"`backend` native: native code {reason}.*; choose `backend` torch"):
        sample(prior, 2, backend="native")
    by_torch = sample(prior, 2, backend="torch")
    assert not capsys.readouterr().out
    for _ in range(2):
        assert torch.equal(*sample(prior, 2), *by_torch)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("sampling in PyTorch")


def test_weights_of_another_type_are_drawn_from_in_pytorch(fresh, capsys):
    prior = build()
    assert backends.choose_backend("auto", prior) == "torch"
    assert capsys.readouterr().out.endswith("its weights are float64\n")
    with pytest.raises(InputError, match="`backend` native: its weights are float64;"):
        sample(prior, 1, backend="native")
    assert backends.choose_backend("auto", build().to("meta")) == "torch"  # and of other devices nothing is said
    assert not capsys.readouterr().out


@pytest.mark.parametrize("form", ["npz", "codegrid"])
def test_a_run_goes_on_with_the_backend_that_it_began_with(form, small_run, tmp_path, run_script, monkeypatch):
    def draw(count, *flags):
        parts = ("--run", small_run, "--num-samples", count, "--format", form, "--output", tmp_path / "s", *flags)
        return run_script("sample", *parts)

    def recorded():
        files = {"npz": "run.json", "codegrid": "manifest.json"}
        record = json.loads((tmp_path / "s" / files[form]).read_text())
        return record["settings" if form == "npz" else "provenance"]["backend"]

    first = "torch" if isinstance(building.library_or_reason(PIXELCNN), str) else "native"
    assert draw(3).code == 0 and recorded() == first
    assert "nothing to do" in draw(3).out and "nothing to do" in draw(3, "--backend", first).out
    refused = draw(3, "--backend", "plain")
    assert refused.code == 2 and f"made with backend {first}, not plain" in refused.err
    assert draw(3, "--backend", "torch", "--overwrite").code == 0
    assert "nothing to do" in draw(3).out
    (tmp_path / "s" / {"npz": "samples.npz", "codegrid": "codes-00000.safetensors"}[form]).unlink()
    assert "making it again" in draw(3).out and recorded() == "torch"
