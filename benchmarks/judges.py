"""A classifier trained once for all evaluations of a process: `--features benchmarks.judges:classifier`.

It is the one of `--features classifier`, which every `evaluate` trains anew.
"""

from codegrid.data.sources import Images
from codegrid.devices import find_device
from codegrid.pipelines.evaluation.classifier import SmallClassifier, train_classifier

_TRAINED: dict[str, SmallClassifier] = {}


def classifier(images: Images) -> SmallClassifier:
    """Train on these images, unless it was trained on them before."""
    name = images.fingerprint()
    if name not in _TRAINED:
        _TRAINED[name] = train_classifier(images, 0, find_device("auto"))
    return _TRAINED[name]
