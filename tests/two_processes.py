"""Two processes that stay: they run functions and commands as torchrun's would, without starting anew for each."""

import io
import os
import socket
import sys
import traceback
from contextlib import redirect_stdout
from importlib import import_module

import torch
from accelerate.state import AcceleratorState


class TwoProcesses:
    """A pair of processes, from `with` to its end."""

    def __enter__(self):
        context = torch.multiprocessing.get_context("spawn")
        self.lines, theirs = zip(*(context.Pipe() for _ in range(2)), strict=True)
        self.workers = [context.Process(target=work, args=(line,), daemon=True) for line in theirs]
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *error):
        for worker in self.workers:
            worker.kill()
            worker.join()

    def call(self, function, *arguments):
        """Call a function of a module in both; returns what each printed. An error in one of them is raised."""
        for line, environment in zip(self.lines, environments(), strict=True):
            line.send((function, arguments, environment))
        answers = []
        for line in self.lines:
            assert line.poll(300), "the two processes wait for each other"
            answers.append(line.recv())
        assert [error for error, _ in answers] == ["", ""], "\n".join(f"{printed}{error}" for error, printed in answers)
        return [printed for _, printed in answers]

    def run(self, name, *flags):
        """Run a command in both to its end."""
        printed, _ = self.call(run_command, name, list(map(str, flags)))
        assert "2 processes" in printed


def environments():
    """What torchrun tells each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def work(line):
    torch.set_num_threads(1)  # two processes, and perhaps no more than two cores
    while True:
        function, arguments, environment = line.recv()
        os.environ |= environment
        error = ""
        with redirect_stdout(io.StringIO()) as printed:
            try:
                function(*arguments)
            except BaseException:
                error = traceback.format_exc()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        line.send((error, printed.getvalue()))


def run_command(name, flags):
    sys.argv = [f"codegrid-{name}", *flags]
    import_module(f"codegrid.pipelines.{name}").main()
