"""Processes that srun, mpirun or `accelerate launch` started find each other as those of torchrun do."""

import os

import pytest
import torch

from codegrid.errors import InputError
from codegrid.pipelines.running.device import start_accelerator
from codegrid.pipelines.running.launch import join_launch
from codegrid.pipelines.running.settings import Compute

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def srun(rank, tasks=2, per_node="2", node=0, nodes="vm"):
    """What srun tells a task, beside much else."""
    return {
        "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "5", "SLURM_NTASKS": "9", "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": "1", "SLURM_NODEID": str(node),
        "SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_STEP_NODELIST": nodes, "SLURM_NODELIST": "other[1-9]",
    }  # fmt: skip


def mpirun(rank, tasks=2, here=2):
    """What Open MPI tells a process."""
    return {
        "OMPI_COMM_WORLD_SIZE": str(tasks), "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(here),
    }  # fmt: skip


def intel(rank):
    """What MPICH and Intel MPI tell a process."""
    return {"PMI_SIZE": "2", "PMI_RANK": str(rank), "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    "told,expected",
    [
        (srun(1), ("1", "2", "1", "2", "127.0.0.1")),
        (srun(5, 7, "2(x3),1", 2, "gpu[07-08,12],cpu3"), ("5", "7", "1", "2", "gpu07")),
        (srun(6, 7, "2(x3),1", 3, "a1,a[2-4]"), ("6", "7", "1", "1", "a1")),
        (srun(6, 7, "2(x3),1", 3, "a[1-2]-b[3,5]"), ("6", "7", "1", "1", "a1-b3")),
        (mpirun(1), ("1", "2", "1", "2", "127.0.0.1")),
        ({**mpirun(3, 4), "MASTER_ADDR": "m1"}, ("3", "4", "1", "2", "m1")),
        (intel(1), ("1", "2", "1", "2", "127.0.0.1")),
        ({**srun(0), **mpirun(3, 4, 4)}, ("3", "4", "1", "4", "127.0.0.1")),  # mpirun starts helpers by srun
    ],
)
def test_a_task_of_several_gets_the_variables_of_torchrun(told, expected):
    variables = dict(told)
    join_launch(variables)
    assert tuple(variables[name] for name in TORCHRUN) == expected
    assert 1024 < int(variables["MASTER_PORT"]) < 32_768


def test_steps_of_a_job_take_different_ports():
    steps = [srun(0), {**srun(0), "SLURM_STEP_ID": "6"}, {**srun(0), "SLURM_JOB_ID": "1235"}]
    for variables in steps:
        join_launch(variables)
    assert len({variables["MASTER_PORT"] for variables in steps}) == 3


@pytest.mark.parametrize(
    "told",
    [
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the shell of a job
        srun(0, tasks=1),
        mpirun(0, tasks=1),
        {**srun(1), "RANK": "0", "WORLD_SIZE": "4"},  # srun torchrun
        {**srun(1), "WORLD_SIZE": "1"},  # by hand: each task for itself
    ],
)
def test_one_that_is_alone_or_joined_already_stays_so(told):
    variables = dict(told)
    join_launch(variables)
    assert variables == told


def test_machines_of_which_none_is_known_to_be_the_first_are_refused():
    with pytest.raises(InputError, match="set MASTER_ADDR"):
        join_launch(mpirun(3, 4))


def join_as(tell):
    """Join the other process as a task that is told so much; prints what both tell each other."""
    rank = int(os.environ["RANK"])
    with pytest.MonkeyPatch.context() as patch:
        for name in TORCHRUN:
            patch.delenv(name)
        for name, value in tell(rank).items():
            patch.setenv(name, value)
        accelerator = start_accelerator(Compute(device="cpu"), with_prose=False)
        told = accelerator.gather(torch.tensor([10 + accelerator.process_index]))
        print(accelerator.is_main_process, told.tolist())


@pytest.mark.xdist_group("two")
@pytest.mark.parametrize("tell", [srun, mpirun])
@pytest.mark.slow
def test_two_tasks_work_as_one(tell, two):
    assert [text.splitlines()[-1] for text in two.call(join_as, tell)] == ["True [10, 11]", "False [10, 11]"]


def test_what_accelerate_launch_was_told_beyond_processes_changes_no_result(monkeypatch):
    for name, value in {"USE_CPU": "True", "MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "INDUCTOR"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setattr("codegrid.pipelines.running.device.find_device", torch.device)
    accelerator = start_accelerator(Compute(), with_prose=False)
    module = torch.nn.Linear(1, 1)
    assert accelerator.device == torch.device("cpu") and accelerator.prepare_model(module) is module


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_another_engine_of_accelerates_is_refused(engine, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=f"ACCELERATE_USE_{engine}.*`shard`"):
        start_accelerator(Compute(device="cpu"))
