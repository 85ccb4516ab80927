"""Pictures in tar shards, perhaps more than this machine's disk holds, read shard by shard.

Shapes: n pictures, b batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Thread

import numpy as np

from codegrid.errors import InputError
from codegrid.file_names import printable
from codegrid.limits import short
from codegrid.progress import progress_bar
from codegrid.tensors import digest_of, digest_of_file, sha256

from .folder import FolderImages
from .found import Found, count_classes
from .images import ImageBatch, ImageDataset, Size, affordable, evenly_spaced, of_captions
from .listing import TEST, TRAIN
from .loading import Indices, shuffle_within
from .tar_index import TarIndex
from .tar_pictures import TarPictures, choose_part, number_classes
from .tar_places import find_shards
from .tar_shards import Shard, cache_room

SHUFFLE_BUFFER = 10_000  # pictures
FETCHERS = 4  # shards that are fetched at once
AHEAD = 20_000  # pictures to look ahead for shards to fetch, as long as these take at most half of the room
SAMPLED = 4  # shards that represent all if each would have to be fetched


class Ahead(list[int]):
    """Item numbers of a batch, and the shards that later batches will need."""

    shards: tuple[int, ...] = ()


class TarImages(FolderImages):
    """Pictures of tar shards, decoded on demand.

    An epoch shuffles pictures within consecutive pieces of `shuffle_buffer` pictures.
    """

    paths: TarPictures
    damage: dict[str, str]  # why a shard was not read to its end, by its name
    shuffle_buffer = SHUFFLE_BUFFER

    @property
    def are_remote(self) -> bool:
        """Whether any shard must be fetched."""
        return any(shard.is_remote for shard in self.paths.shards)

    @cached_property
    def files(self) -> list[str] | None:
        """The printable names of each picture's shard and member."""
        names = [shard.name for shard in self.paths.shards]
        of_shards = zip(self.paths.shard_of.tolist(), self.paths.names, strict=True)
        return [printable(f"{names[number]}/{name}") for number, name in of_shards]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the order (n,) of an epoch: shuffled shards, and pictures shuffled within `shuffle_buffer` of them.

        Raises `InputError` if more shards are needed at once than there is room for.
        """
        order = shuffle_within(self.paths.shard_of, self.shuffle_buffer, seed, epoch)
        if self.are_remote:
            room, sizes = cache_room(), np.array([shard.stamp[0] for shard in self.paths.shards])
            for first in range(0, len(order), self.shuffle_buffer):
                numbers = order[first : first + 2 * self.shuffle_buffer]  # those in use, and the next ones
                needed = int(sizes[np.unique(self.paths.shard_of[numbers])].sum())
                if needed > room:
                    words = f"needs {needed:,} bytes of shards at once, but there is room for {room:,}"
                    remedy = "choose a smaller one, or set XDG_CACHE_HOME to another disk"
                    raise InputError(f"`shuffle_buffer` {self.shuffle_buffer}: it {words}: {remedy}")
        return order

    def look_ahead(self, batches: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield batches of item numbers, each with the shards that come up next, which `batch` fetches meanwhile."""
        if not self.are_remote:
            yield from batches
            return
        waiting: deque[tuple[Ahead, set[int]]] = deque()
        in_sight: Counter[int] = Counter()  # batches that wait for each shard
        news: list[int] = []
        room, sizes = cache_room() // 2, [shard.stamp[0] for shard in self.paths.shards]

        def next_batch() -> Ahead:
            batch, shards = waiting.popleft()
            in_sight.subtract(shards)
            batch.shards = tuple(news)
            news.clear()
            return batch

        for numbers in batches:
            batch = Ahead(numbers)
            shards = set(self.paths.shard_of[batch].tolist())
            news += sorted(shard for shard in shards if not in_sight[shard])
            in_sight.update(shards)
            waiting.append((batch, shards))
            while waiting and (
                sum(len(each) for each, _ in waiting) > AHEAD
                or sum(sizes[shard] for shard, count in in_sight.items() if count) > room
            ):
                yield next_batch()
        while waiting:
            yield next_batch()

    def batch(self, indices: Indices) -> ImageBatch:
        """Return some images, in the given order, as `FolderImages` does."""
        coming = [self.paths.shards[number] for number in getattr(indices, "shards", ())]
        for first in range(min(FETCHERS, len(coming))):  # daemons: the end of a run does not wait for them
            Thread(target=_fetch, args=(coming[first::FETCHERS],), daemon=True).start()
        return super().batch(indices)

    def fingerprint(self) -> str:
        """Return a digest of the shards, their pictures' names and sizes, and the labels.

        It also covers the content of shards that must be fetched, or the content of as many local ones, evenly spaced,
        as take 2 GiB.
        """
        pictures, shards = self.paths, self.paths.shards
        lengths = [[shard.name, shard.stamp[0], shard.stamp[1] if shard.is_remote else ""] for shard in shards]
        some = [] if self.are_remote else affordable([shard.stamp[0] for shard in shards])
        with ThreadPoolExecutor() as pool:
            content = list(pool.map(digest_of_file, (shards[number].path for number in some)))
        arrays = [sha256(np.ascontiguousarray(each)) for each in (pictures.shard_of, pictures.offsets, pictures.sizes)]
        labels = "none" if self.labels is None else sha256(self.labels.numpy().tobytes())
        shape = [list(self.image_size), self.in_channels, self.classes]
        captions = of_captions(self.captions)
        return digest_of([lengths, digest_of(pictures.names), arrays, content, labels, shape, *captions])

    def ready(self, skip_unreadable: bool = False) -> ImageDataset | FolderImages:
        """Return the images in memory or on demand, as `FolderImages` does.

        Also raises `InputError` if a shard is damaged; with `skip_unreadable`, its pictures before the damage are read.
        """
        if self.damage and not skip_unreadable:
            raise _damaged(self.damage)
        return super().ready(skip_unreadable)

    def _some(self, at_most: int) -> list[int]:
        """Return indices that represent all pictures: from a few shards if each would have to be fetched."""
        if not self.are_remote:
            return super()._some(at_most)
        present = np.unique(self.paths.shard_of)
        chosen = present[evenly_spaced(len(present), SAMPLED)]
        numbers = np.flatnonzero(np.isin(self.paths.shard_of, chosen))
        return numbers[evenly_spaced(len(numbers), at_most)].tolist()

    def _paths_of(self, numbers: np.ndarray) -> TarPictures:
        return self.paths.take(numbers)


def load_tar(pattern: str | None, split: str, size: Size | None, channels: int | None) -> TarImages:
    """Find the pictures of tar shards; none is decoded yet, but each shard is read once, for its index.

    If the names of shards or their folders name parts, these are the parts. Otherwise some pictures are held out, or
    some shards, if each would have to be fetched.

    Raises `InputError` if there are no pictures, or a shard cannot be read.
    """
    if not pattern:
        raise InputError("`data_root`: the tar data set needs shards: data-{000..127}.tar or https://…/data.tar")
    shards = [Shard(place) for place in find_shards(pattern)]
    indices = _read_indices(shards)
    damage = {shard.place: index.damage for shard, index in zip(shards, indices, strict=True) if index.damage}
    counts = [len(index.names) for index in indices]
    if not sum(counts):
        raise _damaged(damage) if damage else InputError(f"{short(pattern)} holds no pictures: give other shards")
    shard_of = np.repeat(np.arange(len(shards)), counts)
    pictures = TarPictures(
        shards, shard_of, [name for index in indices for name in index.names],
        np.concatenate([index.offsets for index in indices]), np.concatenate([index.sizes for index in indices]),
    )  # fmt: skip
    labels, classes = number_classes(pictures, [text for index in indices for text in index.classes])
    chosen, beside, notes = choose_part(pictures, labels, split)
    left_out: dict[str, Counter[str]] = {
        "other members": sum((index.left_out for index in indices), Counter()),
        "without pictures": Counter(shard.name for shard, n in zip(shards, counts, strict=True) if not n),
        "cut off": Counter(shard.name for shard in shards if shard.place in damage),
        "beside the parts": beside,
    }
    labels = None if labels is None else labels[chosen]
    both, *_ = choose_part(pictures, None, "all")
    others = {} if split == "all" else {TRAIN if split == TEST else TEST: len(both) - len(chosen)}
    left_out = {reason: names for reason, names in left_out.items() if names}
    notes = (f"{len(shards):,} shards" if len(shards) > 1 else "one shard", *notes)
    found = Found(len(chosen), count_classes(labels, classes), pattern, split, others, left_out, notes)
    images = TarImages(Path(), pictures.take(chosen), labels, classes, size, channels, found)
    images.damage = damage
    captions = [texts for index in indices for texts in index.captions]
    captions = [captions[number] for number in chosen.tolist()]
    images.captions = captions if any(captions) else None
    return images


def _fetch(shards: Sequence[Shard]) -> None:
    for shard in shards:
        with suppress(InputError, OSError):  # raised again when the shard is read
            shard.fetch()


def _read_indices(shards: list[Shard]) -> list[TarIndex]:
    bar = progress_bar(desc="indexing shards", total=len(shards), leave=False)
    with bar, ThreadPoolExecutor(FETCHERS) as pool:
        indices = []
        for index in pool.map(Shard.index, shards):
            indices.append(index)
            bar.update()
        return indices


def _damaged(damage: dict[str, str]) -> InputError:
    """Return one error about all damaged shards."""
    (first, reason), *others = damage.items()
    more = f"; {len(others):,} more are: {', '.join(name for name, _ in others[:10])}" if others else ""
    return InputError(f"{first} is not a complete tar file ({reason}): make it again, or see `skip_unreadable`{more}")
