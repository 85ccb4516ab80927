"""Binary codes, lookup-free and on the sphere: against a table of all codes, at their limits, and in little memory."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_quantizers import LargestTensor, draw_latents, flatten, moment

from codegrid.stage1_vqvae.quantizers import QUANTIZERS

BINARY = ("lfq", "bsq")
both = pytest.mark.parametrize("name", BINARY)


def build(name, num_embeddings=16, **options):
    return QUANTIZERS[name](num_embeddings=num_embeddings, **options).train()


def code_table(quantizer):
    """The vectors (K, D) of all codes, from their bits."""
    bits = np.arange(quantizer.num_embeddings)[:, None] >> np.arange(quantizer.embedding_dim) & 1
    return torch.from_numpy(2.0 * bits - 1) * quantizer.length


def entropies_by_table(rows, table, temperature):
    """Mean entropy () of each site's distribution over all codes, and entropy () of their mean: rows (n, D)."""
    p = F.softmax(-(rows[:, None] - table).square().sum(2) / temperature, 1)
    return torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()


@both
@pytest.mark.parametrize(("num_embeddings", "temperature"), [(2, 1.0), (16, 0.5), (512, 1.0), (512, 0.05)])
def test_losses_and_their_gradients_are_those_of_a_table_of_all_codes(name, num_embeddings, temperature):
    options = {"entropy_weight": 0.3, "diversity_gamma": 0.7, "commitment_cost": 0.2}
    quantizer = build(name, num_embeddings, entropy_temperature=temperature, **options).double()
    latents = (draw_latents(3, quantizer.embedding_dim, 4, 2).double() * 0.3).requires_grad_()
    ours = quantizer(latents, moment())
    table, rows = code_table(quantizer), latents.flatten(2).transpose(1, 2).flatten(0, 1)
    if name == "bsq":
        rows = rows / rows.norm(dim=1, keepdim=True)
    codes = torch.cdist(rows, table).argmin(1)
    of_sites, of_all = entropies_by_table(rows, table, temperature)
    commitment = 0.2 * (rows - table[codes]).square().mean()
    assert torch.equal(ours.codes[0].flatten(), codes) and torch.equal(flatten(ours.vectors), table[codes])
    expected = {"commitment_loss": commitment, "entropy_loss": 0.3 * (of_sites - 0.7 * of_all)}
    for found, right in (
        (ours.losses.terms, expected),
        (ours.losses.figures, {"batch_site_entropy": of_sites, "batch_code_entropy": of_all}),
    ):
        assert found.keys() == right.keys()
        for key, value in right.items():
            torch.testing.assert_close(found[key], value, atol=1e-9, rtol=1e-9)
    gradient = torch.autograd.grad(ours.losses.total, latents)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(expected.values()), latents)[0], atol=1e-9, rtol=1e-7)


@both
def test_float32_is_exact_to_six_digits(name):
    latents = draw_latents(4, 9, 50) * 0.5
    options = {"num_embeddings": 512, "entropy_temperature": 0.5}
    results = []
    for dtype in (torch.float32, torch.float64):
        given = latents.to(dtype).requires_grad_()
        losses = build(name, **options).to(dtype)(given, moment()).losses
        results.append([*losses.figures.values(), torch.autograd.grad(losses.total, given)[0]])
    for ours, right in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-6, rtol=2e-6)


@pytest.mark.slow  # the package comes with all extras
@both
def test_codes_losses_and_gradients_are_those_of_the_package(name):
    package = pytest.importorskip("vector_quantize_pytorch")
    latents = draw_latents(2, 6, 5, 3).requires_grad_()
    ours = build(name, 64, commitment_cost=0.25, entropy_temperature=0.5, diversity_gamma=0.8)(latents, moment())
    theirs = package.LFQ(
        codebook_size=64, dim=6, commitment_loss_weight=0.25, entropy_loss_weight=0.1, diversity_gamma=0.8,
        spherical=name == "bsq",
    ).train()  # fmt: skip
    vectors, codes, loss = theirs(latents, inv_temperature=2.0)
    torch.testing.assert_close(ours.vectors, vectors)
    reversed_bits = sum((codes >> 5 - bit & 1) << bit for bit in range(6))  # the package's first bit is the highest
    assert torch.equal(ours.codes[0], reversed_bits)
    torch.testing.assert_close(ours.losses.total, loss, atol=1e-6, rtol=1e-4)
    gradients = [torch.autograd.grad(value, latents, retain_graph=True)[0] for value in (ours.losses.total, loss)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)  # its logarithm has a floor of 1e-5


@both
def test_a_latent_of_zero_has_bits_of_plus_one_wherever_it_is_asked(name):
    quantizer = build(name)
    for zero in (0.0, -0.0):
        latents = torch.full((1, 4, 2), zero, requires_grad=True)
        vectors, (codes,), losses = quantizer(latents, moment())
        assert (codes == 15).all() and torch.equal(quantizer.encode(latents)[0], codes)
        assert (vectors == quantizer.length).all() and torch.equal(quantizer.look_up((codes,)), vectors)
        (losses.total + vectors.sum()).backward()
        assert latents.grad.isfinite().all()


def test_vectors_on_the_sphere_have_length_one_however_long_the_latents_are():
    quantizer, latents = build("bsq", 512), draw_latents(2, 9, 30)
    vectors, codes, losses = quantizer(latents, moment())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, 30))
    longer = quantizer(latents * 100, moment())
    assert torch.equal(longer.codes[0], codes[0])
    torch.testing.assert_close(longer.losses.total, losses.total)


@both
def test_the_entropy_of_uniform_use_of_many_codes_is_its_logarithm(name):
    quantizer = build(name, 2**18, entropy_temperature=0.01)
    assert quantizer(torch.zeros(1, 18, 3)).losses.figures["batch_code_entropy"] == pytest.approx(12.4766, abs=1e-3)
    few = build(name, 2**10, entropy_temperature=0.01)
    some = few.look_up((torch.arange(0, 1024, 2)[None],)).requires_grad_()  # every second code once, and clearly
    losses = few(some, moment()).losses
    assert losses.figures["batch_code_entropy"].item() == pytest.approx(math.log(512), abs=1e-4)
    assert losses.figures["batch_site_entropy"].item() == pytest.approx(0, abs=1e-2)
    losses.total.backward()  # the other codes have a probability of 0
    assert some.grad.isfinite().all()


@both
def test_the_entropy_terms_spread_latents_over_all_codes(name):
    latents = (0.5 + 0.1 * draw_latents(1, 4, 64)).requires_grad_()
    quantizer = build(name, commitment_cost=0.0, entropy_temperature=0.5)
    assert len(quantizer.encode(latents)[0].unique()) == 1
    for step in range(60):
        losses = quantizer(latents, moment(step)).losses
        latents.data -= 0.05 * torch.autograd.grad(losses.total, latents)[0].sign()
    assert len(quantizer.encode(latents)[0].unique()) > 8 and losses.total < 0  # as it should be: −λ γ H


@both
def test_without_weight_no_entropy_is_computed(name):
    losses = build(name, entropy_weight=0.0)(draw_latents(2, 4, 6), moment()).losses
    assert list(losses.terms) == ["commitment_loss"] and not losses.figures


@both
def test_no_tensor_is_as_large_as_sites_times_codes(name):
    quantizer, latents = build(name, 2**12), draw_latents(1, 12, 4096).requires_grad_()
    with LargestTensor() as largest:
        quantizer(latents, moment()).losses.total.backward()
    assert largest.numel <= 4096 * 2**6


TRAIN_MANY = """
import resource, torch
from codegrid.codes import Moment
from codegrid.noise import Noise
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
latents = torch.randn(16, 18, 32, 32, requires_grad=True)
vectors, codes, losses = QUANTIZERS["{name}"](num_embeddings=2**18)(latents, Moment(0, 1, Noise(0)))
(losses.total + vectors.sum()).backward()
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@both
def test_a_step_with_2_to_the_18_codes_at_16_384_sites_stays_below_two_gigabytes(name):
    # started by a small process: a child's peak begins at what its parent holds
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TRAIN_MANY.format(name=name)!r}])"
    done = subprocess.run([sys.executable, "-c", start], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 2e9
