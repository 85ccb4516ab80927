"""Processes started by srun or mpirun: the environment variables that torchrun would set are set here.

`accelerate launch` sets them itself on GPUs, and calls mpirun on CPUs. Nothing here imports torch.
"""

import os
import re
from collections.abc import MutableMapping

from codegrid.errors import InputError

# torchrun's variable → the starter's. SLURM_STEP_... are set for tasks only: a job's shell also has SLURM_NTASKS, but
# is a single process. mpirun comes first: it may start its own helpers by srun.
STARTERS = (
    {
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "RANK": "OMPI_COMM_WORLD_RANK",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
        "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    {
        "WORLD_SIZE": "PMI_SIZE",
        "RANK": "PMI_RANK",
        "LOCAL_RANK": "MPI_LOCALRANKID",
        "LOCAL_WORLD_SIZE": "MPI_LOCALNRANKS",
    },
    {"WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"},
)
PORT = 29_500
SLURM_PORTS = range(20_000, 30_000)  # below those that systems assign


def join_launch(variables: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT if this is one of several tasks.

    If WORLD_SIZE is set already, nothing changes; if it is 1, each task works on its own.

    Raises `InputError` if the machine of the first process is unknown.
    """
    if "WORLD_SIZE" in variables:
        return
    for names in STARTERS:
        if set(names.values()) <= variables.keys() and int(variables[names["WORLD_SIZE"]]) > 1:
            joined = {name: variables[theirs] for name, theirs in names.items()}
            if "LOCAL_WORLD_SIZE" not in joined:
                per_node = variables.get("SLURM_STEP_TASKS_PER_NODE", joined["WORLD_SIZE"])
                joined["LOCAL_WORLD_SIZE"] = _tasks_on(int(variables.get("SLURM_NODEID", 0)), per_node)
            address = {"MASTER_ADDR": _first_machine(joined, variables), "MASTER_PORT": str(_port(variables))}
            variables.update({**joined, **{name: value for name, value in address.items() if name not in variables}})
            return


def _tasks_on(node: int, per_node: str) -> str:
    """Return the number of tasks on a node, from a list such as `2(x3),1`: two on each of three nodes, then one."""
    counts: list[str] = []
    for part in per_node.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [count] * int(times or 1)
    return counts[node]


def _first_machine(joined: MutableMapping[str, str], variables: MutableMapping[str, str]) -> str:
    if joined["LOCAL_WORLD_SIZE"] == joined["WORLD_SIZE"]:
        return "127.0.0.1"
    if "MASTER_ADDR" not in variables and "SLURM_STEP_NODELIST" not in variables:
        raise InputError(
            f"{joined['WORLD_SIZE']} processes on several machines, but the machine of the first one is unknown: set "
            "MASTER_ADDR to its name"
        )
    # `gpu[07-09,12],cpu3` gives gpu07: a comma within brackets does not separate machines
    first = re.split(r",(?![^\[]*\])", variables.get("SLURM_STEP_NODELIST", ""))[0]
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first)


def _port(variables: MutableMapping[str, str]) -> int:
    """Return a port that all tasks of a step agree on, and that other steps on the same machine do not use."""
    if "SLURM_JOB_ID" not in variables:
        return PORT
    step = int(variables["SLURM_JOB_ID"]) * 7 + int(variables.get("SLURM_STEP_ID", 0))
    return SLURM_PORTS[step % len(SLURM_PORTS)]
