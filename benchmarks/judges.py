"""Judges that are made once for all evaluations of a process.

`--features benchmarks.judges:classifier` is the network of `--features classifier`, which every `evaluate` trains anew.
"""

from collections.abc import Iterable
from itertools import repeat

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


class Reference:
    """Test images as networks see them: computed once, where each `evaluate` would compute them again."""

    def __init__(self, dataset: str, data_root: str, agreement: str, distance: str) -> None:
        """Take the data and the features that tell classes and measure distances, by their names in `evaluate`."""
        train, test = (load_images(dataset, data_root, split) for split in ("train", "test"))
        self._agreement, self._distance, self._device = agreement, distance, find_device("auto")
        self._extractors = {name: make_extractor(name, train, 0, self._device) for name in {agreement, distance}}
        batches = (test.batch(rows) for rows in in_order(len(test), BATCH_SIZE))
        self._real = self._look(batches, len(test))[distance]

    def judge(self, samples: Samples) -> dict[str, float]:
        """Return the `gfid` of samples and, if they have classes, their `class_agreement`."""
        labels = repeat(None) if samples.labels is None else samples.labels.split(BATCH_SIZE)
        batches = map(ImageBatch, map(to_uint8, samples.images.split(BATCH_SIZE)), labels)
        drawn = self._look(batches, len(samples.images))
        found = {"gfid": frechet_distance(drawn[self._distance].statistics, self._real.statistics)}
        agreement = drawn[self._agreement].agreement
        return found | ({} if agreement is None else {"class_agreement": agreement})

    def _look(self, batches: Iterable[ImageBatch], count: int) -> dict[str, JudgedImages]:
        seen = {name: JudgedImages(extractor) for name, extractor in self._extractors.items()}
        with progress_bar(desc="judged", total=count, unit="img") as bar:
            for batch in batches:
                for judged in seen.values():
                    judged.add(batch.images.to(self._device), batch.labels)
                bar.update(len(batch.images))
        return seen
