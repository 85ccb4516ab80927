"""Judges that are made once for all evaluations of a process.

`--features benchmarks.judges:classifier` is the network of `--features classifier`, which every `evaluate` trains anew.
"""

from collections.abc import Iterable, Sequence

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

    def __init__(self, dataset: str, data_root: str, features: Sequence[str]) -> None:
        """Take the data and the names of the networks as in the settings of `evaluate`."""
        train, test = (load_images(dataset, data_root, split) for split in ("train", "test"))
        device = find_device("auto")
        self._extractors = {name: make_extractor(name, train, 0, device) for name in features}
        self._real = self._look((test.batch(rows) for rows in in_order(len(test), BATCH_SIZE)), len(test))

    def judge(self, samples: Samples) -> dict[str, float]:
        """Return the `class_agreement` of samples by the first network, and their `gfid` by the last."""
        rows = in_order(len(samples.images), BATCH_SIZE)
        labels = [None if samples.labels is None else samples.labels[some] for some in map(list, rows)]
        images = (to_uint8(samples.images[list(some)]) for some in rows)
        drawn = self._look(map(ImageBatch, images, labels), len(samples.images))
        agreement, last = next(iter(drawn.values())).agreement, list(drawn)[-1]
        found = {"gfid": frechet_distance(drawn[last].statistics, self._real[last].statistics)}
        return found | ({} if agreement is None else {"class_agreement": agreement})

    def _look(self, batches: Iterable[ImageBatch], count: int) -> dict[str, JudgedImages]:
        seen = {name: JudgedImages(extractor) for name, extractor in self._extractors.items()}
        with progress_bar(desc="judged", total=count, unit="img") as bar:
            for batch in batches:
                for judged in seen.values():
                    judged.add(batch.images.to(find_device("auto")), batch.labels)
                bar.update(len(batch.images))
        return seen
