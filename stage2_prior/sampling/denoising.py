"""Drawing by denoising: from noise to the vectors that codes stand for, all sites at once.

The solvers are those of diffusers. They follow the same path from noise to data, in steps that are straight (DDIM with
η = 0, Song et al. 2021, arXiv 2010.02502) or bent by the step before (DPM-Solver++, Lu et al. 2022, arXiv 2211.01095).

`sample_denoising` uses only what `codegrid.drawn_priors.Denoising` describes.

Shapes: b batch, D embedding_dim, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from codegrid.codes import Condition, Known, Progress
from codegrid.drawn_priors import Denoising
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig

from .backends import choose_backend
from .checks import check_request, spread_known, start_grids, with_hidden
from .logits import guide


@torch.no_grad()
def sample_denoising(
    prior: Denoising,
    given: Condition,
    noise: Noise,
    config: SamplingConfig,
    known: Known | None = None,
    backend: str = "auto",
    watch: bool = False,
) -> Iterator[Progress]:
    """Draw `noise.count` samples in a few steps, and yield the progress; the last item is the result.

    Known codes are shown to the network as noisy as all others, on their way to what they are. It was not trained for
    that: what is drawn beside them fits them only roughly.

    Args:
        prior: a prior in eval mode.
        given: the condition of each sample.
        noise: each sample starts from noise of its own; nothing else is random.
        config: how many steps, which solver and how much guidance; the prior's own settings stand in for None.
        known: codes to keep, at any sites.
        backend: one of `BACKENDS` that the prior has: each step is one pass through the network.
        watch: yield after each step as well, not only after the last one: the codes nearest to the present guess.

    Raises `InputError` if the prior does not support what is given.
    """
    check_request(prior, given, config)
    choose_backend(backend, prior)
    config = config.completed_by(prior)
    known = spread_known(known, prior.layout, noise.count, prior.device)
    codes, drawn = start_grids(prior.layout, noise.count, prior.device, known)
    if all(bool(mark.all()) for mark in drawn):
        yield Progress(codes, drawn, 1.0)
        return
    kept = torch.stack(drawn).all(0)[:, None]  # where all codes of a site are known
    for mark in drawn:
        mark.fill_(True)  # no site is drawn before another
    clean = prior.latents(codes)
    start = noise.normals("start", *clean.shape[1:]).to(clean)
    latents, steps, solver = start, config.num_inference_steps, prior.make_solver(config.solver)
    assert steps is not None, "own settings of the prior that sampling needs"
    solver.set_timesteps(steps, device=prior.device)
    predict = prior.denoiser(with_hidden(given) if config.guided else given, noise.count * (1 + config.guided))
    for step, timestep in enumerate(solver.timesteps):
        ratio = float(solver.sigmas[step])  # of noise to data
        alpha, sigma = 1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5
        velocity = predict(torch.cat([latents, latents]) if config.guided else latents, timestep)
        if config.guided:
            velocity = guide(velocity, config.guidance_at(step, steps))
        velocity = torch.where(kept, alpha * start - sigma * clean, velocity)
        if watch and step + 1 < steps:
            yield Progress(prior.nearest(alpha * latents - sigma * velocity, known), drawn, (step + 1) / steps)
        latents = solver.step(velocity, timestep, latents).prev_sample
    yield Progress(prior.nearest(latents, known), drawn, 1.0)
