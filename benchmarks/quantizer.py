"""The EMA quantizer compared with the vector-quantize-pytorch package and with the bare matrix product inside it.

pip install vector-quantize-pytorch
python -m benchmarks.quantizer

A training step of the quantizer alone, forward and backward in float32: times are medians of interleaved repeats,
memory is the peak that the step allocates through PyTorch, beyond what was allocated before it.

`--toy` takes seconds: a small case without the package, which need not be installed, to check that the script runs.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from codegrid.codes import Moment
from codegrid.noise import Noise
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

TOY = {"toy": (4, 4, 4, 32, 8)}
CASES = {"small": (64, 8, 8, 512, 64), "large": (16, 32, 32, 8192, 64)}  # batch, height, width, K, D
HUGE = (32, 64, 64, 65_536, 64)
Step = Callable[[], object]


def our_step(batch: int, height: int, width: int, num_embeddings: int, dim: int) -> Step:
    """Return a training step with latents as a channels_last encoder leaves them."""
    quantizer = QUANTIZERS["ema"](num_embeddings=num_embeddings, embedding_dim=dim).train()
    moment = Moment(0, 1, Noise(0))
    latents = torch.randn(batch, height, width, dim).permute(0, 3, 1, 2).requires_grad_()
    gradient = torch.randn(batch, height, width, dim).permute(0, 3, 1, 2)

    def step() -> None:
        vectors, _, losses = quantizer(latents, moment)
        torch.autograd.backward([vectors, losses.total], [gradient, None])
        quantizer.after_step(0, 0)
        latents.grad = None

    return step


def their_step(batch: int, height: int, width: int, num_embeddings: int, dim: int, **options: object) -> Step:
    """Return a training step of the package, on latents in the layout that it prefers."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(
        dim=dim, codebook_size=num_embeddings, decay=0.99, commitment_weight=0.25, **options
    ).train()  # fmt: skip
    latents = torch.randn(batch, height * width, dim).requires_grad_()
    gradient = torch.randn(batch, height * width, dim)

    def step() -> None:
        vectors, _, loss = quantizer(latents)
        torch.autograd.backward([vectors, loss.sum()], [gradient, None])
        latents.grad = None

    return step


def product(batch: int, height: int, width: int, num_embeddings: int, dim: int) -> Step:
    """Return a step that computes only latents × codebookᵀ, into memory that is allocated already."""
    latents, codebook = torch.randn(batch * height * width, dim), torch.randn(num_embeddings, dim)
    out = torch.empty(len(latents), num_embeddings)
    return lambda: torch.mm(latents, codebook.T, out=out)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hide the lines that the profiler's C++ side prints."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_bytes(step: Step) -> int:
    """Return the peak that a step allocates beyond what was allocated before it, by PyTorch's allocator."""
    with quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repeats of every step")
    parser.add_argument("--huge", action="store_true", help="also K 65,536 on 32×64×64 sites, without the package")
    parser.add_argument("--toy", action="store_true", help="a small case in seconds, without the package")
    flags = parser.parse_args()
    torch.manual_seed(0)
    plain = {"threshold_ema_dead_code": 0, "rotation_trick": False}
    for name, sizes in (TOY if flags.toy else CASES).items():
        steps = {"the matrix product": product(*sizes), "codegrid": our_step(*sizes)}
        if not flags.toy:
            steps["the package"] = their_step(*sizes)
            steps["the package, at its best"] = their_step(*sizes, **plain)
        seconds: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(flags.repeats + 2):
            for label, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[label].append(time.perf_counter() - start)
        ours, limit = (median(seconds[label][2:]) for label in ("codegrid", "the matrix product"))
        print(f"{name}: {'·'.join(map(str, sizes[:3]))} sites, K {sizes[3]}, D {sizes[4]}")
        print(f"{'':26} {'ms':>8} {'× product':>10} {'× codegrid':>11} {'extra MB':>9}")
        for label, step in steps.items():
            middle, extra = median(seconds[label][2:]), peak_bytes(step) / 1e6
            print(f"{label:26} {1e3 * middle:8.2f} {middle / limit:10.2f} {middle / ours:11.2f} {extra:9.1f}")
    if flags.huge:
        step = our_step(*HUGE)
        start = time.perf_counter()
        step()
        print(f"K 65536 on 32·64·64 sites: {time.perf_counter() - start:.1f} s, {peak_bytes(step) / 1e6:.0f} MB extra")


if __name__ == "__main__":
    main()
