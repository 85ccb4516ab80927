"""Two processes give what one gives: the codebook on every rank, and the scripts under torchrun."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY_PRIOR, TINY_TOKENIZER, draw_bars
from safetensors.torch import load_file, save_file

from codegrid.data import CodeDataset
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import read_json
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.quantizers import collective as joint
from codegrid.stage1_vqvae.quantizers.anchors import ANCHORS
from codegrid.stage1_vqvae.quantizers.clustered import Clustered

ROOT = Path(__file__).parent.parent
STEPS = 60

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def joint_latents(step):
    """Latents (8, 4, 6) of two processes together; they cover half of the codebook's surroundings."""
    return torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(step))


def quantizer_cases():
    """Every quantizer as it comes, after k-means, with cosine distance, and with each kind of anchors."""
    cases = {}
    for name, kind in QUANTIZERS.items():
        for label, options in {"": {}, "kmeans": {"kmeans_steps": 3}, "cosine": {"distance": "cosine"}}.items():
            cases[f"{name} {label}".strip()] = (name, {"revival_threshold": 0.5, **options})
        for anchors in ANCHORS if issubclass(kind, Clustered) else ():
            cases[f"{name} {anchors}"] = (name, {"anchors": anchors, "decay": 0.9})
    return cases


CASES = quantizer_cases()


def train_quantizer(name, options, rank=None):
    """Train on the joint batches, or as one of two processes on its half of them; returns the state."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](num_embeddings=16, embedding_dim=4, **options).train()
    quantizer.codebook.data.copy_(torch.randn(16, 4) * 3)
    model = quantizer
    if rank is not None and list(quantizer.parameters()):
        # DDP's own copying of buffers would hide a sum that is not reduced
        model = torch.nn.parallel.DistributedDataParallel(quantizer, broadcast_buffers=False)
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    for step in range(STEPS):
        latents = joint_latents(step)
        loss = model(latents if rank is None else latents[rank * 4 : rank * 4 + 4]).loss
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def train_as_one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    states = {case: train_quantizer(*arguments, rank) for case, arguments in CASES.items()}
    joint.is_joint = lambda: False  # the broken twin: each process counts for itself
    states["broken"] = train_quantizer("ema", {}, rank)
    save_file({f"{case}/{key}": value for case, state in states.items() for key, value in state.items()},
              f"{folder}/rank{rank}")  # fmt: skip
    dist.barrier()  # or one rank leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The states of all cases, as the two processes hold them."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_as_one_of_two, (str(folder),), nprocs=2)
    return [load_file(folder / f"rank{rank}") for rank in range(2)]


def state_of(case, tensors):
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == case}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_hold_bitwise_equal_codebooks_and_that_of_one_on_the_joint_batch(case, ranks):
    ours, theirs = (state_of(case, tensors) for tensors in ranks)
    assert len(ours) >= 3 and all(torch.equal(ours[key], theirs[key]) for key in ours)
    for key, value in train_quantizer(*CASES[case]).items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-4)


def test_processes_that_count_for_themselves_would_be_noticed(ranks):
    ours, theirs = (state_of("broken", tensors) for tensors in ranks)
    assert not torch.equal(ours["codebook"], theirs["codebook"])


def test_a_script_for_one_process_refuses_several(monkeypatch):
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr("codegrid.pipelines.running.device.start_accelerator", lambda *args, **options: two)
    with pytest.raises(InputError, match="without torchrun"):
        choose_device("cpu")


def torchrun(name, *flags):
    """Run a script as two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, "-m", f"pipelines.{name}", *map(str, flags)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2 processes" in result.stdout
    return result


def test_training_and_export_as_two_processes_give_one_of_everything(bars_file, small_run, tmp_path):
    data = ("--dataset", "npz", "--data-root", bars_file)
    torchrun("train_tokenizer", *data, "--output", tmp_path / "tokenizer", *TINY_TOKENIZER, "--accumulate", 2)
    alone, together = (load_file(folder / "tokenizer" / "model.safetensors") for folder in (small_run, tmp_path))
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], atol=2e-3, rtol=2e-3)

    # 55 images, which two cannot share evenly, by the same tokenizer, so that the codes can be compared
    np.savez(tmp_path / "odd.npz", *draw_bars(61))
    odd = ("--dataset", "npz", "--data-root", tmp_path / "odd.npz", "--tokenizer", small_run / "tokenizer")
    torchrun("export_codes", *odd, "--output", tmp_path / "codes", "--batch-size", 7)
    images = load_images("npz", tmp_path / "odd.npz", "train")
    codes, tied = VQVAE.from_pretrained(small_run / "tokenizer").encode_marking_ties(to_float(images.images))
    exported = CodeDataset(tmp_path / "codes").__getitems__(range(55))
    assert torch.equal(exported.codes[~tied], codes[~tied]) and torch.equal(exported.labels, images.labels)
    assert read_json(tmp_path / "codes" / "manifest.json")["provenance"]["ties"] == tied.sum()

    torchrun("train_prior", "--codes", tmp_path / "codes", "--output", tmp_path / "prior", *TINY_PRIOR)
    for name, more in (("tokenizer", ["reconstructions.png"]), ("prior", ["state"])):
        left = sorted(path.name for path in (tmp_path / name).iterdir())
        assert left == sorted(["README.md", "config.json", "model.safetensors", "run.json", *more])
