"""How a training step is computed, which must not change what is learnt: in pieces, compiled, in which layout."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import TINY_PRIOR, TINY_TOKENIZER
from safetensors.torch import load_file

from codegrid.data.images import ImageBatch
from codegrid.pipelines.running.device import Execution, keep_memory
from codegrid.pipelines.training.loop import Stage, _find_gradients


def test_a_step_in_pieces_trains_as_the_whole_batch_does(tmp_path, bars_file, run_script):
    flags = ("--dataset", "npz", "--data-root", bars_file, *TINY_TOKENIZER, "--kmeans-steps", 2)
    for name, pieces in (("whole", 1), ("pieces", 4)):
        assert run_script("train_tokenizer", *flags, "--accumulate", pieces, "--output", tmp_path / name).code == 0
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert whole["quantizer.running_steps"] == pieces["quantizer.running_steps"] == 30
    for key in whole:
        torch.testing.assert_close(whole[key], pieces[key], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("pieces", [2, 4])
def test_the_gradient_of_pieces_is_that_of_the_whole_batch(pieces):
    torch.manual_seed(0)
    model, batch = torch.nn.Linear(3, 1), ImageBatch(torch.randn(8, 3), None)
    stage = Stage(model, None, lambda model, batch: {"loss": model(batch.images).square().mean()}, None)
    execution = Execution("fp32", torch.contiguous_format, True, False)

    def gradient_of(accumulate):
        model.zero_grad()
        settings = SimpleNamespace(seed=0, accumulate=accumulate)
        figures = _find_gradients(stage, model, batch, 0, settings, execution, Accelerator(cpu=True))
        return model.weight.grad.clone(), figures["loss"]

    for whole, cut in zip(gradient_of(1), gradient_of(pieces), strict=True):
        torch.testing.assert_close(cut, whole)


SWITCHES = {
    "fp32, contiguous, plain Adam": ("--precision", "fp32", "--memory-format", "contiguous", "--optimizer", "plain"),
    "fp32, channels_last, fused Adam": ("--precision", "fp32"),
    "bf16, channels_last, fused Adam": ("--precision", "bf16"),
}


@pytest.mark.parametrize("said", SWITCHES)
def test_a_run_says_once_how_its_steps_are_computed_and_does_so(
    said, tmp_path, small_run, bars_file, run_script, monkeypatch
):
    chosen = []

    class Spy(torch.optim.Adam):
        def __init__(self, parameters, **options):
            parameters = list(parameters)
            kernels = [kernel for kernel in parameters if kernel.ndim == 4]
            is_last = all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
            layout, kind = "channels_last" if is_last else "contiguous", "fused" if options.get("fused") else "plain"
            chosen.append(f"{layout}, {kind} Adam")
            super().__init__(parameters, **options)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    data = ("--dataset", "npz", "--data-root", bars_file)
    for name, flags in (
        ("train_tokenizer", (*data, *TINY_TOKENIZER)), ("train_prior", ("--codes", small_run / "codes", *TINY_PRIOR))
    ):  # fmt: skip
        result = run_script(name, *flags, *SWITCHES[said], "--output", tmp_path / name)
        assert result.code == 0 and result.out.count(said) == 1
    assert len(chosen) == 2 and all(choice in said for choice in chosen)


def test_compiling_without_a_compiler_is_refused(tmp_path, small_run, run_script, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    result = run_script("train_prior", "--codes", small_run / "codes", *TINY_PRIOR, "--compile", "--output", tmp_path)
    assert result.code == 2 and "--compile needs a C++ compiler" in result.err


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


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_what_one_that_is_not_compiled_learns(tmp_path, small_run, run_script):
    flags = ("--codes", small_run / "codes", *TINY_PRIOR, "--dropout", 0, "--label-dropout", 0)
    for name, compiled in (("compiled", ["--compile"]), ("written", [])):
        result = run_script("train_prior", *flags, *compiled, "--output", tmp_path / name)
        assert result.code == 0 and ("fused Adam, compiled" in result.out) == bool(compiled)
    compiled, written = (load_file(tmp_path / name / "model.safetensors") for name in ("compiled", "written"))
    for key in written:
        torch.testing.assert_close(compiled[key], written[key], atol=1e-3, rtol=1e-3)
