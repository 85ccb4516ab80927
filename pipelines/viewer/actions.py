"""What the viewer does, without its page: encode, edit, sample and complete.

Shapes: n samples, c channels, H W image, h w code grid.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codegrid.data.folder import FolderImages
from codegrid.data.images import to_float
from codegrid.errors import InputError
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.request import Request, complete_codes, make_request
from codegrid.pipelines.running.checks import check_ranges


class Partial(NamedTuple):
    """Samples while they are drawn."""

    images: torch.Tensor  # (n, c, H, W) in [-1, 1]; 0, grey, where no code has been drawn
    codes: torch.Tensor  # (n, h, w) int64; 0 where none has been drawn
    rows: int  # of codes that are finished


class _Closed(Exception):
    """Nobody looks at the samples any more."""


def read_picture(pipeline: TwoStagePipeline, path: str | Path) -> torch.Tensor:
    """A picture's file → (1, c, H, W) in [-1, 1], of the tokenizer's size and channels."""
    path, tokenizer = Path(path), pipeline.tokenizer
    pictures = FolderImages(path.parent, [path], None, [], tokenizer.image_size, tokenizer.in_channels)
    return to_float(pictures.__getitems__([0]).images)


def encode(pipeline: TwoStagePipeline, image: torch.Tensor) -> torch.Tensor:
    """An image (1, c, H, W) in [-1, 1] → codes (1, h, w) int64."""
    return pipeline.tokenizer.encode(image.to(_device(pipeline))).cpu()


def decode(pipeline: TwoStagePipeline, codes: torch.Tensor) -> torch.Tensor:
    """Codes (n, h, w) → images (n, c, H, W) in [-1, 1]."""
    return pipeline.decode(codes.to(_device(pipeline))).cpu()


def edit(pipeline: TwoStagePipeline, codes: torch.Tensor, row: int, column: int, code: int) -> torch.Tensor:
    """Codes (1, h, w) with another one at a site, as a copy."""
    check_site(codes, row, column)
    _check("code", code, pipeline.tokenizer.num_embeddings)
    edited = codes.clone()
    edited[0, int(row), int(column)] = int(code)
    return edited


def check_site(codes: torch.Tensor, row: int, column: int) -> None:
    """Raise `InputError` where codes (1, h, w) have no such site."""
    _check("row", row, codes.shape[1])
    _check("column", column, codes.shape[2])


def _check(name: str, value: int, end: int) -> None:
    if value not in range(end):
        raise InputError(f"{name} {value}: it must be a whole number from 0 to {end - 1}")


def sample(
    pipeline: TwoStagePipeline, num_samples: int, labels: Sequence[int | str], seed: int, **controls: Any
) -> Iterator[Partial]:
    """Draw new images: what there is after each row of codes. Labels are taken in turn; none given: all classes."""
    check_ranges({"num_samples": num_samples})
    in_turn = [labels[i % len(labels)] for i in range(num_samples)] if labels else None
    return draw(pipeline, make_request(pipeline.prior, num_samples, in_turn, seed, controls))


def complete(
    pipeline: TwoStagePipeline,
    codes: torch.Tensor,
    keep_rows: int,
    num_completions: int,
    label: int | str | None,
    seed: int,
    **controls: Any,
) -> Iterator[Partial]:
    """Keep the upper rows of codes (1, h, w) and draw the others: what there is after each row."""
    labels = None if label is None else [label]
    return draw(pipeline, complete_codes(pipeline.prior, codes, keep_rows, num_completions, labels, seed, controls))


def draw(pipeline: TwoStagePipeline, request: Request) -> Iterator[Partial]:
    """A request's samples after each row of codes; the last ones are those of `TwoStagePipeline.answer`."""
    rows: queue.Queue[tuple[torch.Tensor, int] | Exception | None] = queue.Queue()
    closed = threading.Event()

    def show(grids: torch.Tensor, row: int) -> None:
        if closed.is_set():
            raise _Closed
        rows.put((grids.clone(), row + 1))

    def run() -> None:
        try:
            pipeline.draw_codes(request, range(request.num_samples), show)
            rows.put(None)
        except _Closed:
            pass
        except Exception as error:  # of a thread: it is raised where the samples are waited for
            rows.put(error)

    # in a thread, for a sampler calls back and does not yield
    threading.Thread(target=run, daemon=True).start()
    try:
        while (latest := rows.get()) is not None:
            if isinstance(latest, Exception):
                raise latest
            codes, finished = latest
            yield Partial(_decode_rows(pipeline, codes, finished), codes.cpu(), finished)
    finally:
        closed.set()


def _decode_rows(pipeline: TwoStagePipeline, codes: torch.Tensor, rows: int) -> torch.Tensor:
    images = pipeline.decode(codes).cpu()
    images[:, :, rows * pipeline.tokenizer.downsampling :] = 0
    return images


def _device(pipeline: TwoStagePipeline) -> torch.device:
    return next(pipeline.tokenizer.parameters()).device
