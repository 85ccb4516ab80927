"""Two processes give what one gives: the codebook on every rank, and the scripts under torchrun."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY_PRIOR, TINY_TOKENIZER
from safetensors.torch import load_file, save_file

from data import CodeDataset
from pipelines.run_folder import read_json
from stage1_vqvae.quantizers import QUANTIZERS

ROOT = Path(__file__).parent.parent
STEPS = 60

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def joint_latents(step):
    """Latents (8, 4, 6) of two processes together; they cover half of the codebook's surroundings."""
    return torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(step))


def build(name):
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](num_embeddings=16, embedding_dim=4, revival_threshold=0.5).train()
    quantizer.codebook.data.copy_(torch.randn(16, 4) * 3)
    return quantizer


def train_one_rank(rank, name, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = torch.nn.Sequential(torch.nn.Identity(), build(name))
    if list(model.parameters()):
        model = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([*model.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    for step in range(STEPS):
        loss = model(joint_latents(step)[rank * 4 : rank * 4 + 4]).loss
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_file(
        {key.rpartition(".")[2]: value.clone() for key, value in model.state_dict().items()}, f"{folder}/rank{rank}"
    )
    del model  # before its process group
    dist.barrier()  # or one rank leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_two_processes_hold_the_codebook_of_one_on_the_joint_batch(name, tmp_path):
    mp.spawn(train_one_rank, (name, str(tmp_path)), nprocs=2)
    ranks = [load_file(tmp_path / f"rank{rank}") for rank in range(2)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])

    quantizer = build(name)
    before = copy.deepcopy(quantizer.codebook)
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    for step in range(STEPS):
        loss = quantizer(joint_latents(step)).loss
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(before, quantizer.codebook)
    for key, value in quantizer.state_dict().items():
        torch.testing.assert_close(ranks[0][key], value, atol=1e-4, rtol=1e-4)


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
    torchrun("train_tokenizer", *data, "--output", tmp_path / "tokenizer", *TINY_TOKENIZER)
    alone = read_json(small_run / "tokenizer" / "config.json")["provenance"]["history"][-1]
    together = read_json(tmp_path / "tokenizer" / "config.json")["provenance"]["history"][-1]
    assert together["reconstruction_error"] == pytest.approx(alone["reconstruction_error"], rel=0.05)

    # of the same tokenizer, so that the codes can be compared
    torchrun("export_codes", *data, "--tokenizer", small_run / "tokenizer", "--output", tmp_path / "codes")
    ours, theirs = CodeDataset(tmp_path / "codes"), CodeDataset(small_run / "codes")
    assert ours.header == theirs.header
    everything = range(len(theirs))
    assert torch.equal(ours.__getitems__(everything).codes, theirs.__getitems__(everything).codes)

    torchrun("train_prior", "--codes", tmp_path / "codes", "--output", tmp_path / "prior", *TINY_PRIOR)
    for name in ("tokenizer", "prior"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "config.json", "model.safetensors", "run.json",
        ]  # fmt: skip
