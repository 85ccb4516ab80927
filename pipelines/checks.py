"""Checks of settings that the flag parser cannot make."""

from typing import Any

from storage.errors import InputError


def check_positive(settings: Any, *names: str) -> None:
    """Raise InputError where one of the named settings is not positive."""
    for name in names:
        value = getattr(settings, name)
        if value <= 0:
            raise InputError(f"--{name.replace('_', '-')} {value}: it must be at least 1")


def check_share(settings: Any, name: str) -> None:
    """Raise InputError where the named setting is not in [0, 1)."""
    value = getattr(settings, name)
    if not 0 <= value < 1:
        raise InputError(f"--{name.replace('_', '-')} {value}: it must be at least 0 and below 1")


def number_labels(labels: tuple[str, ...], num_samples: int, num_classes: int, classes: list[str]) -> list[int] | None:
    """Class numbers for every sample from what the user wrote: numbers or names, one for each sample or one for all.

    Without any, all classes in turn; None for an unconditional prior.
    """
    if not num_classes:
        if labels:
            raise InputError("--labels: this prior is unconditional; leave them out")
        return None
    if not labels:
        return [i % num_classes for i in range(num_samples)]
    if len(labels) not in (1, num_samples):
        raise InputError(f"--labels: {len(labels)} labels for {num_samples} samples: give one for each, or one for all")
    numbers = []
    for label in map(str, labels):
        if label in classes:
            numbers.append(classes.index(label))
        elif label.isdigit() and int(label) < num_classes:
            numbers.append(int(label))
        else:
            names = f" ({', '.join(classes[:20])})" if classes else ""
            raise InputError(f"label {label}: there are classes 0 to {num_classes - 1}{names}")
    return numbers * num_samples if len(numbers) == 1 else numbers
