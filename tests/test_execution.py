"""How a training step is computed, which must not change what is learnt: in pieces, compiled, in which layout."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_PRIOR, TINY_TOKENIZER
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from codegrid.errors import InputError
from codegrid.pipelines.running.device import (
    RIGHT_GRADIENTS,
    ComputeConfig,
    channels_last,
    choose_compute,
    keep_memory,
    place,
)
from codegrid.pipelines.training.trainer import fused_adam


def test_a_step_in_pieces_trains_as_the_whole_batch_does(tmp_path, bars_file, run_script):
    flags = ("--dataset", "npz", "--data-root", bars_file, *TINY_TOKENIZER, "--kmeans-steps", 2)
    for name, pieces in (("whole", 1), ("pieces", 4)):
        assert run_script("train_tokenizer", *flags, "--accumulate", pieces, "--output", tmp_path / name).code == 0
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    for key in whole:
        torch.testing.assert_close(whole[key], pieces[key], atol=2e-3, rtol=2e-3)


def test_kernels_of_images_lie_with_their_channels_innermost():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv1d(4, 4, 3), torch.nn.Conv3d(4, 4, 3))
    place(network, torch.device("cpu"))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
    assert network[2].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert channels_last(torch.zeros(2, 3, 4, 5)).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(torch.zeros(2, 3, 4)).is_contiguous()


def test_adam_moves_all_weights_at_once():
    assert fused_adam(torch.nn.Linear(2, 2).parameters()).param_groups[0]["fused"]


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    settings = SimpleNamespace(precision="fp32", compile=True)
    with pytest.raises(InputError, match="`compile` needs a C\\+\\+ compiler"):
        choose_compute(settings, torch.device("cpu"))


def test_a_compiler_that_is_known_to_be_wrong_is_refused(monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.running.device.require_compiler", lambda device, what: None)
    monkeypatch.setattr("torch.__version__", TorchVersion("2.6.0+cu124"))
    settings = SimpleNamespace(precision="fp32", compile=True)
    with pytest.raises(InputError, match="`compile`: PyTorch 2"):
        choose_compute(settings, torch.device("cpu"))


def test_how_a_run_computes_is_said_in_a_few_words():
    assert str(ComputeConfig("bf16", compiled=True)) == "bf16, compiled" and str(ComputeConfig("fp32")) == "fp32"


@pytest.mark.parametrize(
    "largest,kept", [(2**31 - 1, [2**31 - 1, 2**31 - 1, 2**26, 1]), (2**25, [2**25, 2**31 - 1, 2**26, 1]), (0, [])]
)
def test_memory_is_kept_as_far_as_the_c_library_allows(largest, kept, monkeypatch):
    taken = []

    def mallopt(parameter, value):
        if parameter == -3 and value > largest:  # the threshold above which memory is mapped
            return 0
        taken.append(value)
        return 1

    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_memory()
    assert taken == kept


@pytest.mark.skipif(torch.__version__ < RIGHT_GRADIENTS, reason="this PyTorch compiles gradients wrongly")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_compiled_run_learns_what_one_that_is_not_compiled_learns(
    compiler, tmp_path, small_run, run_script, monkeypatch
):
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: whole(*args, **{**options, "backend": compiler}))
    flags = ("--codes", small_run / "codes", *TINY_PRIOR)
    for name, compiled in (("compiled", ["--compile"]), ("written", [])):
        result = run_script("train_prior", *flags, *compiled, "--output", tmp_path / name)
        assert result.code == 0 and ("fp32, compiled" in result.out) == bool(compiled)
    compiled, written = (load_file(tmp_path / name / "model.safetensors") for name in ("compiled", "written"))
    for key in written:
        torch.testing.assert_close(compiled[key], written[key], atol=1e-3, rtol=1e-3)
