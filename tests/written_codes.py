"""Small code datasets for tests: two classes, shards of ten images."""

import numpy as np
import torch

from codegrid.codes import Grid
from codegrid.data.code_writer import missing_ranges, write_codes
from codegrid.data.codes import CodeBatch
from codegrid.data.manifest import CodeHeader

COUNT = 25

# single grids of one, two and three axes, grids of several sizes, several codes a site
LAYOUTS = {
    "t": (Grid((7,), 16),),
    "hw": (Grid((3, 5), 300),),
    "thw": (Grid((2, 3, 4), 16),),
    "pyramid": (Grid((2, 3), 16), Grid((4, 6), 300)),
    "residual": (Grid((3, 5), 16), Grid((3, 5), 16)),
    "all": (Grid((4,), 70_000), Grid((2, 3), 2), Grid((2, 2, 2), 257)),
}


def draw_codes(layout, count=COUNT, seed=0):
    """Codes at random, one tensor for each grid."""
    random = np.random.default_rng(seed)
    return tuple(torch.from_numpy(random.integers(0, grid.num_embeddings, (count, *grid.shape))) for grid in layout)


HEADER = CodeHeader(
    num_images=COUNT,
    grids=LAYOUTS["hw"],
    classes=["ant", "bee"],
    split="train",
    tokenizer_fingerprint="f" * 64,
    source="s" * 64,
)
CODES = draw_codes(LAYOUTS["hw"])
LABELS = torch.arange(COUNT) % 2


def shard_of(rows, codes=CODES, columns=None):
    """The rows of codes and columns, by default labels."""
    part = slice(rows.start, rows.stop)
    columns = {"labels": LABELS} if columns is None else columns
    return CodeBatch(tuple(grid[part] for grid in codes), {name: column[part] for name, column in columns.items()})


def export(folder, header=HEADER, encode=shard_of, tables=None):
    missing = missing_ranges(folder, header)
    write_codes(folder, header, missing, map(encode, missing), {"dataset": "bars"}, tables)
