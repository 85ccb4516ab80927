"""Judges that are made once for all evaluations of a process.

`--features benchmarks.judges:classifier` is the network of `--features classifier`, which every `evaluate` trains anew.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

from codegrid.data.images import ImageBatch, to_uint8
from codegrid.data.loading import in_order
from codegrid.data.sources import Images, load_images
from codegrid.devices import find_device
from codegrid.pipelines.evaluation.classifier import SmallClassifier, train_classifier
from codegrid.pipelines.evaluation.features import make_extractor
from codegrid.pipelines.evaluation.frechet import JudgedImages, frechet_distance
from codegrid.pipelines.generation.samples import Samples
from codegrid.progress import progress_bar

BATCH_SIZE = 256
_TRAINED: dict[str, SmallClassifier] = {}


def classifier(images: Images) -> SmallClassifier:
    """Train on these images, unless it was trained on them before."""
    name = images.fingerprint()
    if name not in _TRAINED:
        _TRAINED[name] = train_classifier(images, 0, find_device("auto"))
    return _TRAINED[name]


class Judgement(NamedTuple):
    """How often samples are of the class that was asked for, and how far they are from the test images."""

    agreement: float | None  # share that is named as asked; None without classes
    distances: list[float]  # Fréchet distances to test images, one for each of the features


class Reference:
    """Test images as networks see them: computed once, where each `evaluate` would compute them again."""

    def __init__(
        self, dataset: str, data_root: str, agreement: str, *distances: str, image_size: tuple[int, ...] = ()
    ) -> None:
        """Take the data and the features that tell classes and measure distances, by their names in `evaluate`."""
        train, test = (load_images(dataset, data_root, split, image_size) for split in ("train", "test"))
        self._agreement, self._distances, self._device = agreement, distances, find_device("auto")
        self._extractors = {name: make_extractor(name, train, 0, self._device) for name in {agreement, *distances}}
        batches = (test.batch(rows) for rows in in_order(len(test), BATCH_SIZE))
        self._real = self._look(batches, len(test))

    def judge(self, samples: Samples) -> Judgement:
        """Compare samples with the test images."""
        labels = repeat(None) if samples.labels is None else samples.labels.split(BATCH_SIZE)
        batches = map(ImageBatch, map(to_uint8, samples.images.split(BATCH_SIZE)), labels)
        drawn = self._look(batches, len(samples.images))
        return Judgement(
            drawn[self._agreement].agreement,
            [frechet_distance(drawn[name].statistics, self._real[name].statistics) for name in self._distances],
        )

    def _look(self, batches: Iterable[ImageBatch], count: int) -> dict[str, JudgedImages]:
        seen = {name: JudgedImages(extractor) for name, extractor in self._extractors.items()}
        with progress_bar(desc="judged", total=count, unit="img") as bar:
            for batch in batches:
                for judged in seen.values():
                    judged.add(batch.images.to(self._device), batch.labels)
                bar.update(len(batch.images))
        return seen
