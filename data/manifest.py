"""What the manifest of a code dataset must look like, whoever wrote it.

Shapes: n images, h w code grid, K num_embeddings.
"""

from dataclasses import dataclass, fields

from codegrid.limits import LARGEST_SIDE, MOST_CLASSES, MOST_ENTRIES, check_whole, is_list_of, short

MOST_IMAGES = 10**12
RECORD = {"file": str, "num_images": int, "sha256": str}  # of a shard
LIMITS = {"height": LARGEST_SIDE, "width": LARGEST_SIDE, "num_embeddings": MOST_ENTRIES}  # of a grid


@dataclass(frozen=True)
class CodeHeader:
    """What the manifest says of the codes."""

    num_images: int
    grids: list[dict[str, int]]  # height, width and num_embeddings of each grid, coarse to fine
    classes: list[str]  # the name of each label; empty where there are no labels
    split: str
    tokenizer_fingerprint: str
    source: str  # identity of the images


def shard_name(number: int) -> str:
    """The file of a shard: no manifest can name another."""
    return f"codes-{number:05d}.safetensors"


def check_manifest(manifest: dict) -> None:
    """Raise ValueError where the manifest of a code dataset lacks a field, or a value cannot be."""
    if not isinstance(manifest.get("provenance"), dict):
        raise ValueError(f"provenance {short(manifest.get('provenance'))}: it must be an object")
    _check_header(manifest.get("header"))
    shards = manifest.get("shards")
    if not is_list_of(shards, dict):
        raise ValueError(f"shards {short(shards)}: it must be a list of objects")
    for number, record in enumerate(shards):
        if {name: type(value) for name, value in record.items()} != RECORD:
            raise ValueError(f"shard {number} {short(record)}: it must tell file, num_images and sha256")
        if record["file"] != shard_name(number):
            raise ValueError(f"file {short(record['file'])}: shard {number} must be {shard_name(number)}")
        check_whole("num_images", record["num_images"], 1, MOST_IMAGES)
    total = sum(record["num_images"] for record in shards)
    if total != manifest["header"]["num_images"]:
        raise ValueError(f"its shards hold {total} grids, not {manifest['header']['num_images']}")


def _check_header(header: object) -> None:
    names = [field.name for field in fields(CodeHeader)]
    if not isinstance(header, dict) or header.keys() != set(names):
        raise ValueError(f"header {short(header)}: it must tell {', '.join(names)}")
    check_whole("num_images", header["num_images"], 1, MOST_IMAGES)
    if not is_list_of(header["grids"], dict) or not header["grids"]:
        raise ValueError(f"grids {short(header['grids'])}: it must be a list of at least one object")
    for grid in header["grids"]:
        if grid.keys() != LIMITS.keys():
            raise ValueError(f"grid {short(grid)}: it must tell {', '.join(LIMITS)}")
        for name, most in LIMITS.items():
            check_whole(name, grid[name], 1, most)
    if not is_list_of(header["classes"], str) or len(header["classes"]) > MOST_CLASSES:
        raise ValueError(f"classes {short(header['classes'])}: it must be a list of at most {MOST_CLASSES:,} names")
    for name in ("split", "tokenizer_fingerprint", "source"):
        if not isinstance(header[name], str):
            raise ValueError(f"{name} {short(header[name])}: it must be a string")
