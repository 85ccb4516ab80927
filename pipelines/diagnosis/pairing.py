"""The pairing of the folders of a run: do they belong together?"""

from codegrid.errors import InputError
from codegrid.pipelines.doctor import Doctor
from codegrid.pipelines.generation.artifacts import Artifacts
from codegrid.pipelines.generation.pairing import check_pairing
from codegrid.pipelines.running.cli import with_flags

from .finding import FAULT, WARNING, Finding, Metrics, join_words
from .parts import code_dataset


def find_strangers(found: Artifacts) -> list[Finding]:
    """Find folders that were made with different tokenizers, have different classes, or hold the same images."""
    strangers = _find_other_tokenizers(found) or _find_misfits(found)
    return [*strangers, *_find_other_classes(found), *_find_equal_images(found)]


def _find_other_tokenizers(found: Artifacts) -> list[Finding]:
    groups: dict[str, list[str]] = {}
    for name, fingerprint in found.tokenizer_fingerprints().items():
        groups.setdefault(fingerprint, []).append(found.folders[name])
    if len(groups) < 2:
        return []
    home, *others = sorted(groups.values(), key=len, reverse=True)  # of equal groups the first, the tokenizer's
    strangers = [folder for group in others for folder in group]
    verb = "does" if len(strangers) == 1 else "do"
    words = (
        f"Wrong pairing: {join_words(strangers, 'and')} {verb} not belong to {join_words(home, 'and')}; they were made "
        "with different tokenizers (the fingerprints differ), and what needs both was not checked."
    )
    remedy = (
        "Give the folders of one run, or make the later ones again with the tokenizer that you keep: codegrid "
        "export-codes --tokenizer for codes, then codegrid train-prior --codes for the prior."
    )
    return [Finding(FAULT, "pairing", words, remedy, {"tokenizers": len(groups)})]


def _find_misfits(found: Artifacts) -> list[Finding]:
    """Find priors that do not draw the tokenizer's grids together: one is missing, say, or they are not in order."""
    if found.tokenizer is None or not found.priors:
        return []
    try:
        check_pairing(found.tokenizer, found.priors)
    except InputError as error:
        what, _, remedy = with_flags(str(error), Doctor).partition(": ")
        words = f"Wrong pairing: {what}."
        return [Finding(FAULT, "pairing", words, f"{remedy[:1].upper()}{remedy[1:]}.", {"priors": len(found.priors)})]
    return []


def _find_other_classes(found: Artifacts) -> list[Finding]:
    findings = []
    for prior_name, prior in zip(found.prior_names, found.priors, strict=True):
        known = list(prior.conditions.classes)
        for name, codes in (("codes", code_dataset(found)), ("validation_codes", found.validation)):
            if prior.conditions.num_classes and codes is not None and list(codes.classes) != known:
                other, learnt = found.folders[name], found.folders[prior_name]
                words = f"Wrong pairing: {other} has other classes than {learnt} learnt."
                remedy = (
                    "Give the codes that the prior was trained on, or train one on these: codegrid train-prior --codes."
                )
                metrics: Metrics = {"classes of the prior": len(known), "classes of the codes": len(codes.classes)}
                findings.append(Finding(FAULT, "pairing", words, remedy, metrics))
    return findings


def _find_equal_images(found: Artifacts) -> list[Finding]:
    codes = code_dataset(found)
    if codes is None or found.validation is None or codes.header.source != found.validation.header.source:
        return []
    words = (
        f"Nothing is held out: {found.folders['codes']} and {found.folders['validation_codes']} are codes of the same "
        "images, so overfitting cannot be seen."
    )
    remedy = "Export the other part for validation: codegrid export-codes --split test."
    return [Finding(WARNING, "pairing", words, remedy, {"codes": len(codes)})]
