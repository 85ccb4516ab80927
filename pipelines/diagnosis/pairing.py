"""Do the folders of a run belong together?"""

from .finding import FAULT, WARNING, Finding
from .parts import Parts


def find_strangers(parts: Parts) -> list[Finding]:
    """Folders that go back to different tokenizers, know other classes, or hold the same images."""
    return [*_find_other_tokenizers(parts), *_find_other_classes(parts), *_find_equal_images(parts)]


def _find_other_tokenizers(parts: Parts) -> list[Finding]:
    groups: dict[str, list[str]] = {}
    for name, fingerprint in parts.fingerprints().items():
        groups.setdefault(fingerprint, []).append(parts.folders[name])
    if len(groups) < 2:
        return []
    home, *others = sorted(groups.values(), key=len, reverse=True)  # of equal ones the first, the tokenizer's
    strangers = [folder for group in others for folder in group]
    verb = "does" if len(strangers) == 1 else "do"
    words = (
        f"Wrong pairing: {_join(strangers)} {verb} not belong to {_join(home)}; the fingerprints of the tokenizers "
        "that they go back to differ, and what needs both was not looked at"
    )
    remedy = (
        "Give the folders of one run. Or make the later ones again, with the tokenizer that is to stay: export_codes "
        "--tokenizer for codes, then train_prior --codes for the prior."
    )
    return [Finding(FAULT, "pairing", words + ".", remedy, {"tokenizers": len(groups)})]


def _find_other_classes(parts: Parts) -> list[Finding]:
    if parts.prior is None or not parts.prior.num_classes:
        return []
    known = parts.prior.provenance.get("classes")
    findings = []
    for name, codes in (("codes", parts.codes), ("validation_codes", parts.validation)):
        if codes is not None and codes.classes != known:
            words = f"Wrong pairing: {parts.folders[name]} has other classes than {parts.folders['prior']} learnt."
            remedy = "Give the codes that the prior was trained on, or train one on these: train_prior --codes."
            figures = {"classes of the prior": len(known or []), "classes of the codes": len(codes.classes)}
            findings.append(Finding(FAULT, "pairing", words, remedy, figures))
    return findings


def _find_equal_images(parts: Parts) -> list[Finding]:
    if parts.codes is None or parts.validation is None:
        return []
    if parts.codes.header.source != parts.validation.header.source:
        return []
    words = (
        f"Nothing is held out: {parts.folders['codes']} and {parts.folders['validation_codes']} are codes of the same "
        "images, so that no overfitting can be seen."
    )
    remedy = "Export the other part for validation: export_codes --split test."
    return [Finding(WARNING, "pairing", words, remedy, {"grids": len(parts.codes)})]


def _join(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
