"""The training of a model: how long was it, and was there more to learn?"""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from codegrid.limits import MAX_STEPS

from .finding import WARNING, Finding, Metrics, Row, Subject, pick
from .likelihood import higher_dropout, learn_longer

# Sound runs had 3 epochs (CIFAR-10, prior) to 57 (the demo's tokenizer).
MIN_EPOCHS = 3
# In the second half of the demo's training the tokenizer's error fell by 12 %, on CIFAR-10 by 8 and 12 %, in a run of
# 800 steps by 14 %; in runs of 50 to 400 steps by 20 to 32 %, though the last report was 1 % below the one before. Bits
# rose in the demo by 3 %, and fell in runs of 400 steps by 8 %, of 50 to 200 by 13 to 29 %.
MAX_LATE_GAIN = 0.15
MAX_ABOVE_BEST = 0.05  # 0.03 in the demo, whose prior is kept long after its best step for its samples' sake

ROWS = {
    "steps": Row("steps", ",.0f", low=lambda m: m["planned_steps"]),
    "kept_step": Row("step whose weights were kept", ",.0f"),
    "epochs": Row("epochs: items seen over items to learn", ",.1f", low=MIN_EPOCHS),
    "late_gain": Row("drop of the validation metric, second half", ".1%", high=MAX_LATE_GAIN),
    "above_best": Row("that metric at the kept step, above the best", ".1%", high=MAX_ABOVE_BEST),
}
# validation metrics by which tokenizers and priors are judged, one for each: lower is better
FIGURES = ("reconstruction_error", "nats", "bits_per_code", "denoising_error")


def measure_training(provenance: Mapping[str, Any], batch_size: object = None, items: object = None) -> Metrics:
    """Return how long a model was trained, and how far its validation metric fell.

    Values in an unexpected form, as in other people's models, are ignored.

    Args:
        provenance: the model's.
        batch_size: items per step.
        items: number of items to learn.
    """
    history = provenance.get("history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    rows = [row for row in rows if _is_count(row.get("step"))]
    last = max((row["step"] for row in rows), default=0)
    told = {"steps": last, "planned_steps": provenance.get("steps"), "kept_step": provenance.get("step")}
    metrics: Metrics = {name: value for name, value in told.items() if _is_count(value)}
    if last and _is_count(batch_size) and _is_count(items):
        metrics["epochs"] = last * batch_size / items
    curve = {row["step"]: row[name] for row in rows for name in FIGURES if _is_figure(row.get(name))}
    if last in curve and not provenance.get("adversarial"):  # a discriminator raises the error when it begins
        metrics["above_best"] = curve.get(provenance.get("step"), curve[last]) / min(curve.values()) - 1
        if half := [step for step in curve if 2 * step <= last]:
            metrics["late_gain"] = 1 - curve[last] / curve[max(half)]
    return metrics


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= MAX_STEPS


def _is_figure(value: object) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


def find_faults_of_training(metrics: Metrics, model: Subject) -> list[Finding]:
    """Find a training that ended too early, or went on for too long.

    A learning rate that falls to 0 flattens the end of every curve, so the whole second half is considered.

    Args:
        metrics: of `measure_training`.
        model: its name for sentences, and its options.
    """
    stage: Literal["tokenizer", "prior"] = "tokenizer" if model.of == "tokenizer" else "prior"
    if metrics.get("late_gain", 0.0) > MAX_LATE_GAIN:
        words = (
            f"{model.name} was still learning: in the second half of its {metrics['steps']:,.0f} steps its validation "
            f"metric fell by {metrics['late_gain']:.0%}."
        )
        longer = "Train the tokenizer longer (codegrid train-tokenizer --steps)."
        remedy = learn_longer(model) if stage == "prior" else longer
        return [Finding(WARNING, stage, words, remedy, pick(metrics, "steps", "epochs", "late_gain"), model.of)]
    if metrics.get("above_best", 0.0) > MAX_ABOVE_BEST:
        words = (
            f"{model.name} was trained past its best: its validation metric is "
            f"{metrics['above_best']:.0%} above the lowest."
        )
        best = "--keep best, " * (stage == "prior")
        remedy = f"Train the {stage} with {best}{higher_dropout(model)}fewer --steps (codegrid train-{stage})."
        return [Finding(WARNING, stage, words, remedy, pick(metrics, "kept_step", "above_best"), model.of)]
    return []
