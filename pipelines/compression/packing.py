"""Codes, and perhaps the pixels that they were made from, to bytes and back.

Shapes: n images, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from codegrid.budget import check_memory
from codegrid.codes import NO_LABEL, Codes, Condition
from codegrid.data.loading import in_order
from codegrid.errors import InputError
from codegrid.pipelines.generation.pairing import check_pairing
from codegrid.progress import progress_bar
from codegrid.protocols import Prior, Tokenizer
from codegrid.same_bits import SameBits
from codegrid.stage2_prior.coding.coding import SAME, choose_coding, code_chunk, why_not_same
from codegrid.stage2_prior.coding.frequencies import share_out
from codegrid.stage2_prior.coding.streams import Reader, Stream, Writer
from codegrid.stage2_prior.conditions import Conditions, conditions_of

from .container import CHANGED, Header, join, short, split
from .machine import Model, as_it_was, on_cpu, same_each_time, this_machine
from .pixels import read_pixels, write_pixels
from .predicting import predict

CHUNK = 1024  # images whose symbols follow one another, where the batch makes no difference


class Content(NamedTuple):
    """Images or codes to compress, or decompressed ones."""

    codes: Codes  # (n, *shape) int64 of each grid
    labels: torch.Tensor | None = None  # (n,) int64 of the priors' classes
    names: list[str] | None = None  # of the images' files
    images: Sequence[torch.Tensor] | torch.Tensor | None = (
        None  # (n) (c, H, W) uint8, if they are to come back bit for bit
    )


def pack(
    tokenizer: Tokenizer, priors: Sequence[Prior], content: Content, backend: str = "auto", batch_size: int = 256
) -> bytes:
    """Compress codes, and the images that they were made from if these are given.

    Args:
        priors: of this tokenizer, coarse to fine.
        backend: native, torch or plain; auto: native if the priors have steps in native code, or else torch. With
            native everything is computed on the CPU, wherever the models are.
        batch_size: images computed at once.

    Raises `InputError` if a prior cannot drive a coder, or the parts do not belong together.
    """
    check_pairing(tokenizer, priors)
    backend = choose_coding(priors, backend)
    priors = [_placed(prior, backend) for prior in priors]
    chunk, count = (CHUNK if backend == SAME else batch_size), len(content.codes[0])
    stream, conditions = Writer(), conditions_of(priors)
    labels = _labels_to_keep(conditions, content.labels, count)
    if labels is not None:
        _code_labels(stream, conditions.num_classes, count, labels)
    _code_all(priors, Condition(labels), count, stream, content.codes, backend, batch_size, chunk)
    fields, shapes, same_bits = {}, None, SameBits()
    if content.images is not None:
        decoder = _placed(tokenizer, backend)
        guess = predict(decoder, content.codes, labels, conditions.classes, batch_size, same_bits).numpy()
        fields = write_pixels(stream, guess, [image.numpy() for image in content.images])
        shapes = [tuple(image.shape) for image in content.images]
        shapes = None if set(shapes) == {tokenizer.signal.shape} else shapes
    if backend != SAME or not same_bits.holds:
        fields |= {"machine": this_machine(priors[0].device), "threads": torch.get_num_threads()}
    header = Header(
        images=count, tokenizer=short(tokenizer.fingerprint()), labels=labels is not None, chunk=chunk,
        priors=tuple(short(prior.fingerprint()) for prior in priors), backend=backend, batch_size=batch_size,
        codes=short(_digest_of_codes(content.codes, labels)), **fields,
    )  # fmt: skip
    return join(header, content.names, shapes, stream.content())


def unpack(
    packed: bytes,
    tokenizer: Tokenizer,
    priors: Sequence[Prior],
    source: str = "this",
    batch_size: int | None = None,
    with_images: bool = True,
) -> Content:
    """Decompress what `pack` returned. Without pixels, the result has no images.

    Args:
        source: what was packed, for messages.
        batch_size: images computed at once; None: as many as when it was packed.
        with_images: read the pixels, too, if there are any.

    Raises `InputError` if it is damaged, was made with other models, or on a machine of another kind if that matters.
    """
    check_pairing(tokenizer, priors)
    header, names, shapes, stream = split(packed, source)
    _check_models(source, header, tokenizer, priors)
    if header.backend == SAME and (reason := why_not_same(priors)):
        raise InputError(f"{source} was compressed by `backend` {SAME}: {reason}")
    backend = choose_coding(priors, header.backend)
    priors = [_placed(prior, backend) for prior in priors]
    sites = sum(grid.num_sites for grid in tokenizer.layout)
    check_memory(f"{header.images:,} {tokenizer.signal.item}s", 8 * header.images * sites, "use one with more memory")
    batch, conditions, reader = batch_size or header.batch_size, conditions_of(priors), Reader(stream)
    labels = _code_labels(reader, conditions.num_classes, header.images) if header.labels else None
    given = Condition(labels)
    if not with_images and backend == SAME:
        header = replace(header, machine="")  # only pixels depend on it
    images = None
    with as_it_was(source, header, priors[0].device, batch_size):
        codes = _code_all(priors, given, header.images, reader, None, backend, batch, header.chunk)
        if short(_digest_of_codes(codes, labels)) != header.codes:
            raise InputError(f"{source}: its codes {CHANGED}")
        if header.predicted and with_images:
            decoder = _placed(tokenizer, backend)
            guess = predict(decoder, codes, labels, conditions.classes, batch, SameBits()).numpy()
            images = list(map(torch.from_numpy, read_pixels(reader, guess, shapes, header, source)))
    return Content(codes, labels, names, images)


def _placed(model: Model, backend: str) -> Model:
    """Return a model where it computes: native code, and pixels of the same bits everywhere, need the CPU."""
    return on_cpu(model) if backend == SAME else model


def _labels_to_keep(conditions: Conditions, labels: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """Return the labels that the priors are given; None if they are given none.

    Raises `InputError` if there is not one for each image, or one is not of a class that they learnt.
    """
    if not conditions.num_classes or labels is None or not bool((labels != NO_LABEL).any()):
        return None
    conditions.rows(Condition(labels), count, torch.device("cpu"))
    return labels


def _code_labels(stream: Stream, num_classes: int, count: int, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Write or read labels (n,): all classes, and no label, are equally likely."""
    even = share_out(np.ones((count, num_classes + 1), np.float32))
    own = None if labels is None else (labels.numpy() - NO_LABEL).astype(np.int32)
    return torch.from_numpy(stream.code(even, own).astype(np.int64)) + NO_LABEL


def _code_all(
    priors: Sequence[Prior], given: Condition, count: int, stream: Stream, codes: Codes | None, backend: str,
    batch_size: int, chunk: int,
) -> Codes:  # fmt: skip
    """Write or read all codes, chunk by chunk."""
    sites, coded = sum(grid.num_sites for prior in priors for grid in prior.layout), []
    with same_each_time(), progress_bar(total=count * sites, desc="codes", unit="code") as bar:
        for rows in in_order(count, chunk):
            here = slice(rows.start, rows.stop)
            own = None if codes is None else tuple(grid[here] for grid in codes)
            coded.append(code_chunk(priors, given.rows(here), len(rows), stream, own, backend, batch_size, bar.update))
    return tuple(torch.cat(grids) for grids in zip(*coded, strict=True))


def _check_models(source: str, header: Header, tokenizer: Tokenizer, priors: Sequence[Prior]) -> None:
    ours = tuple(short(prior.fingerprint()) for prior in priors)
    is_ours = header.tokenizer == short(tokenizer.fingerprint())
    other = "" if is_ours and header.priors == ours else "prior" if is_ours else "tokenizer"
    if other:
        raise InputError(
            f"{source} was compressed with another {other} (the fingerprints differ): give `{other}` that it was made "
            "with"
        )


def _digest_of_codes(codes: Codes, labels: torch.Tensor | None) -> str:
    grids = [*codes, *([] if labels is None else [labels])]
    return hashlib.sha256(b"".join(grid.numpy().astype("<i8").tobytes() for grid in grids)).hexdigest()
