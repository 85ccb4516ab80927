"""Metrics by name, with what each was measured on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .classifier import is_same
from .frechet import JudgedImages, frechet_distance

METRICS_FILE = "metrics.json"


@dataclass
class Metrics:
    """Metrics by name, what each was measured on, the metrics of each grid, and which are left out."""

    values: dict[str, Any] = field(default_factory=dict)
    measured_on: dict[str, dict[str, Any]] = field(default_factory=dict)
    grids: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # sentences
    notes: list[str] = field(default_factory=list)  # sentences on what weakens the metrics
    item: str = "image"  # what is measured, in words

    def add(self, values: dict[str, Any], /, **measured_on: Any) -> None:
        """Add metrics that were measured on the same things."""
        self.values.update(values)
        self.measured_on.update({name: measured_on for name in values})

    def as_json(self, **described: Any) -> dict[str, Any]:
        """Return everything as JSON values, together with `described`."""
        parts = {name: getattr(self, name) for name in ("grids", "measured_on", "left_out", "notes")}
        return {**self.values, **described, **parts}

    def lines(self) -> list[str]:
        """Return the lines to print: the numbers, which of them need care, and what is left out."""
        lines = []
        for name, value in self.values.items():
            if isinstance(value, int | float):
                lines.append(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
        lines += [_describe_grid(grid, self.item) for grid in self.grids if len(self.grids) > 1]
        for name, details in self.measured_on.items():
            if details.get("rank_deficient"):
                fewest, dimensions = min(details["images_compared"]), details["feature_dimensions"]
                lines.append(
                    f"{name}: {fewest} images are too few for the covariance of {dimensions} features (rank "
                    "deficient); compare it only with distances of equally many images"
                )
            if "captions" in details:
                lines.append(
                    f"{name}: the image's own among {details['captions']}; at random {1 / details['captions']:.4f}"
                )
        return lines + self._bounds() + self._rejections() + self._seen() + self.notes + self.left_out

    def _bounds(self) -> list[str]:
        """Return lines that say which bits are only a bound, and of how many steps."""
        told: dict[str, list[str]] = {}
        for name, details in self.measured_on.items():
            if details.get("likelihood") == "bound":
                words = f"an upper bound{_describe_steps(details)}: do not compare it with exact bits"
                told.setdefault(words, []).append(name)
        return [f"{', '.join(names)}: {words}" for words, names in told.items()]

    def _rejections(self) -> list[str]:
        """Return lines that say who rejected, and whether the same network judges."""
        told: dict[str, list[str]] = {}
        for name, details in self.measured_on.items():
            for what, rejection in details.get("rejections", {}).items():
                network = rejection["network"]
                words = f"each of the {what} is the best of {rejection['draws']} draws, chosen by a "
                words += f"{network.get('name')} ({str(network.get('weights'))[:12]})"
                if rejection["is_judge"]:
                    words += "; the same network judges them here, which flatters them: judge by another, --features"
                told.setdefault(words, []).append(name)
        return [f"{', '.join(names)}: {words}" for words, names in told.items()]

    def _seen(self) -> list[str]:
        """Return a line that says which metrics are by a network that the tokenizer was trained with."""
        names = [name for name, details in self.measured_on.items() if details.get("seen_in_training")]
        if not names:
            return []
        words = "the tokenizer was trained with the same network, which flatters it"
        return [f"{', '.join(names)}: {words}: judge by another, --features"]


def _describe_steps(details: dict[str, Any]) -> str:
    """Say in how many steps codes would be drawn, in a random order, if that is known."""
    known = [steps for steps in details.get("num_inference_steps", ()) if steps is not None]
    return f", for codes drawn in a random order in {' and '.join(map(str, known))} steps" if known else ""


def _describe_grid(grid: dict[str, Any], item: str) -> str:
    """Say in one line how a grid is used, and what it carries."""
    words = f"perplexity {grid['perplexity']:.1f} of {grid['num_embeddings']:,}"
    if "bits_per_code" in grid:
        words += f", {grid['bits_per_code']:.4f} bits per code, {grid['bits_per_image']:.1f} per {item}"
    words += f"; error {grid['error_rise']:+.4f} with another {item}'s codes" if "error_rise" in grid else ""
    return f"{'grid ' + str(grid['grid']):24} {words}"


def mark_judge(rejections: dict[str, dict[str, Any]], judge: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return who rejected which images, and for each whether that is also the network that judges them."""
    return {what: {**each, "is_judge": is_same(each["network"], judge)} for what, each in rejections.items()}


def mark_seen(networks: Sequence[dict[str, Any]], judge: dict[str, Any]) -> dict[str, bool]:
    """Return whether the judge is one of the networks that a training used; nothing if it used none."""
    return {"seen_in_training": any(is_same(each, judge) for each in networks)} if networks else {}


def add_distance(name: str, ours: JudgedImages, real: JudgedImages, metrics: Metrics, **measured_on: Any) -> None:
    """Add the Fréchet distance of images to real ones, with what shows how far to trust it."""
    metrics.add(
        {name: frechet_distance(ours.statistics, real.statistics)},
        **measured_on,
        extractor=real.extractor.description,
        images_compared=[ours.statistics.count, real.statistics.count],
        feature_dimensions=real.statistics.dimensions,
        rank_deficient=ours.statistics.rank_deficient or real.statistics.rank_deficient,
    )


def add_agreement(name: str, ours: JudgedImages, real: JudgedImages, metrics: Metrics, **measured_on: Any) -> None:
    """Add how often a classifier gives images their own class, with its accuracy on real ones."""
    if ours.agreement is None:
        return
    metrics.add(
        {name: ours.agreement, f"{name}_by_class": ours.agreement_by_class},
        **measured_on,
        extractor=real.extractor.description,
        accuracy_on_reference=real.agreement,
    )
