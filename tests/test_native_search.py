"""The native search for the nearest entry: the codes of the search in PyTorch, whatever the sizes and threads."""

import pytest
import torch
from hypothesis import given as with_any
from hypothesis import settings as tries
from hypothesis import strategies as st
from sanitized import run_sanitized
from small_quantizers import draw_latents, measure_gaps

from codegrid.native.build import library_or_reason, load_library
from codegrid.stage1_vqvae.quantizers import native, nearest
from codegrid.stage1_vqvae.quantizers.native import NEAREST
from codegrid.stage1_vqvae.quantizers.nearest import nearest_codes

pytestmark = pytest.mark.skipif(isinstance(library_or_reason(NEAREST), str), reason=f"{library_or_reason(NEAREST)}")


def assert_nearest(codes, latents, codebook, distance):
    """No entry is nearer than the one found by more than float32 can tell."""
    gaps = measure_gaps(latents.double(), codebook.double(), distance)
    assert codes.dtype == torch.int64 and codes.shape == (len(latents),)
    torch.testing.assert_close(gaps.gather(1, codes[:, None])[:, 0], gaps.amin(1), atol=1e-5, rtol=1e-5)


@tries(max_examples=12, deadline=None)
@with_any(
    n=st.integers(1, 150),
    dim=st.integers(1, 40),
    entries=st.integers(1, 150),
    distance=st.sampled_from(["euclidean", "cosine"]),
    shift=st.sampled_from([0.0, 10.0]),
)
def test_it_finds_the_nearest_entry_whatever_the_sizes(n, dim, entries, distance, shift):
    latents, codebook = shift + draw_latents(n, dim), shift + draw_latents(entries, dim, seed=2)
    assert_nearest(nearest_codes(latents, codebook, distance), latents, codebook, distance)


@pytest.mark.parametrize("change", [lambda x: x.t().contiguous().t(), lambda x: torch.cat([x, x], 1)[:, : x.shape[1]]])
def test_latents_may_lie_in_memory_in_any_way(change):
    latents, codebook = draw_latents(101, 24), draw_latents(70, 24, seed=2)
    assert torch.equal(nearest_codes(change(latents), change(codebook)), nearest_codes(latents, codebook))


def test_a_code_depends_neither_on_the_rows_beside_it_nor_on_threads(monkeypatch):
    latents, codebook = draw_latents(301, 64), draw_latents(512, 64, seed=2)
    latents[1::2] = latents[::2][:-1]  # as close to a tie as can be
    codebook[256:] = codebook[:256] * (1 + 2**-22)
    whole = nearest_codes(latents, codebook)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(native, "WORTH_A_THREAD", 1)
    assert torch.equal(nearest_codes(latents, codebook), whole)
    assert nearest_codes(latents[:0], codebook).shape == (0,)
    for size in (1, 5, 128):
        assert torch.equal(torch.cat([nearest_codes(piece, codebook) for piece in latents.split(size)]), whole)


def test_of_equal_entries_the_first_is_found():
    codebook = draw_latents(40, 8).repeat(5, 1)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(40).repeat(5))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38, -1e38])
def test_latents_that_overflow_get_codes_of_the_codebook(value):
    latents = draw_latents(70, 8)
    latents[3], latents[5, 2] = value, value
    for entries in (1, 33):
        codebook = draw_latents(entries, 8, seed=2)
        codes, expected = nearest_codes(latents, codebook), nearest_codes(draw_latents(70, 8), codebook)
        assert codes.min() >= 0 and codes.max() < entries
        untouched = [row for row in range(70) if row not in (3, 5)]
        assert torch.equal(codes[untouched], expected[untouched])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_without_a_library_pytorch_finds_the_same_codes(distance, monkeypatch):
    latents, codebook = draw_latents(2000, 64), draw_latents(512, 64, seed=2)
    by_library = nearest_codes(latents, codebook, distance)
    monkeypatch.setattr(native, "library_or_reason", lambda library: "no compiler")
    monkeypatch.setattr(nearest, "search", lambda *parts: pytest.fail("there is no library"))
    assert torch.equal(nearest_codes(latents, codebook, distance), by_library)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-march=native", "-mno-avx512f"), ("-march=native", "-mno-avx"), ("-O0",)])
def test_narrower_vectors_find_the_nearest_entry(flags, monkeypatch):
    library = load_library(NEAREST, *flags)
    monkeypatch.setattr(native, "library_or_reason", lambda _: library)
    latents, codebook = draw_latents(301, 13), draw_latents(70, 13, seed=2)
    assert_nearest(nearest_codes(latents, codebook), latents, codebook, "euclidean")


SANITIZED = """
import torch
from sanitized import FLAGS
from codegrid.native.build import load_library
from codegrid.stage1_vqvae.quantizers import native, nearest
library = load_library(native.NEAREST, *FLAGS)
native.library_or_reason = lambda _: library
for n, dim, entries in ((301, 13, 70), (1, 1, 1), (0, 4, 33), (48, 64, 64), (97, 3, 129)):
    nearest.nearest_codes(torch.randn(n, dim), torch.randn(entries, dim))
"""


@pytest.mark.slow
def test_it_reads_and_writes_nothing_that_is_not_its_own():
    run_sanitized(SANITIZED)
