"""Base class of priors: the layout, classes and conditions that they learn, and their options.

Shapes: b batch, K num_embeddings of a grid, *shape its sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codegrid.codes import PAD, Codes, Condition, Grid, Layout, Moment, make_layout
from codegrid.errors import InputError
from codegrid.extra_files import TEXT_TOKENIZER
from codegrid.limits import MAX_CLASSES, MAX_TEXT, MAX_WIDTH, MAX_WORDS, check_whole, make_options
from codegrid.model_folder import ModelFolder
from codegrid.registry import NoOptions

from .coarser import check_coarser, hide_some
from .conditions import Conditions
from .options import CoarserOptions, GivenOptions, TextOptions, readers_of_texts
from .text_tokenizer import FEWEST, TextTokenizer


class GridPrior(ModelFolder, nn.Module):
    """Base class of a prior, however it draws.

    A subclass names the dataclass of its options as `options`, and finds their values in `self.chosen`.

    Args:
        layout: the grids that it learns, as `Grid`s or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it must be given, if its options are `GivenOptions`;
            `coarser_codes` finds their codes in a condition.
        given_layout: these grids, as `Grid`s or as their JSON values.
        given_features: channels of the features that it must be given: `features` finds them in a condition. 0: none.
        num_words: the size of the vocabulary of texts, if its options are `TextOptions`: `texts` finds them in a
            condition. 0: it is not conditioned on texts.
        text_length: the most words of a text.
        options: the fields of `options`.

    Raises `InputError` if an option is unknown or out of range, the numbers of grids do not match their layout, or it
    cannot be given such grids, or texts.
    """

    kind: ClassVar[str] = "prior"
    options: ClassVar[type] = NoOptions
    called: ClassVar[str] = ""  # in messages about options; by default the name of the class
    given_grids: tuple[int, ...] = ()
    given_layout: Layout = ()
    label_dropout: float = 0.0  # the share of the labels that training hides

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        given_grids: Sequence[int] = (),
        given_layout: Sequence[Grid | dict[str, Any]] = (),
        given_features: int = 0,
        num_words: int = 0,
        text_length: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.layout = make_layout(layout)
        self.grids = tuple(range(len(self.layout)) if grids is None else grids)
        if len(self.grids) != len(self.layout):
            raise InputError(f"`grids` {self.grids}: give one number for each of {len(self.layout)} grids")
        check_whole("num_classes", num_classes, 0, MAX_CLASSES)
        self.num_classes = num_classes
        self.chosen: Any = make_options(self.options, options, self.called or type(self).__name__)
        self.config = {
            "layout": [grid.as_json() for grid in self.layout],
            "grids": list(self.grids),
            "num_classes": num_classes,
            **asdict(self.chosen),
        }
        if given_grids or given_layout:
            self._take_grids(tuple(given_grids), make_layout(given_layout))
        elif isinstance(self.chosen, GivenOptions) and not given_features:
            # whoever starts from this prior should not inherit them
            of_coarser = CoarserOptions if isinstance(self.chosen, CoarserOptions) else GivenOptions
            for option in fields(of_coarser):
                del self.config[option.name]
        check_whole("given_features", given_features, 0, MAX_WIDTH)
        self.given_features = given_features
        if given_features:
            self.config["given_features"] = given_features
        self.num_words, self.text_length = num_words, text_length
        self._take_texts()
        self.provenance: dict[str, Any] = {}

    def _take_grids(self, grids: tuple[int, ...], layout: Layout) -> None:
        if not isinstance(self.chosen, GivenOptions):
            raise InputError(f"`given_grids` {grids}: {type(self).__name__} cannot be conditioned on coarser grids")
        if len(grids) != len(layout):
            raise InputError(f"`given_grids` {grids}: give one number for each of {len(layout)} grids (`given_layout`)")
        if list(grids) != sorted(set(grids)) or grids[0] < 0 or grids[-1] >= min(self.grids, default=0):
            raise InputError(
                f"`given_grids` {grids}: give them coarse to fine, all coarser than the grids {self.grids}"
            )
        self.given_grids, self.given_layout = grids, layout
        self.config |= {"given_grids": list(grids), "given_layout": [grid.as_json() for grid in layout]}

    @torch.no_grad()
    def inherit(self, other: Any) -> list[str]:
        """Copy the weights of another prior where they fit, but nothing that follows from the codes, its buffers."""
        own = {name: buffer.clone() for name, buffer in self.named_buffers()}
        fresh = super().inherit(other)
        for name, buffer in self.named_buffers():
            buffer.copy_(own[name])
        return [name for name in fresh if name not in own]

    def _take_texts(self) -> None:
        has_options = isinstance(self.chosen, TextOptions)
        if not self.num_words and not self.text_length:
            for option in fields(TextOptions) if has_options else ():
                del self.config[option.name]
            return
        if not has_options:
            name = type(self).__name__
            raise InputError(f"`num_words`: a {name} cannot be conditioned on texts: {readers_of_texts()}")
        check_whole("num_words", self.num_words, FEWEST, MAX_WORDS)
        check_whole("text_length", self.text_length, 1, MAX_TEXT)
        self._check_hides_both()
        self.config |= {"num_words": self.num_words, "text_length": self.text_length}

    def _check_hides_both(self) -> None:
        """Raise `InputError` if a prior of labels and texts does not also learn to draw without each of them."""
        for name in ("label_dropout", "caption_dropout") if self.num_classes else ():
            if not (share := getattr(self.chosen, name, 0.0)):
                words = "a prior of labels and texts must also learn to draw without them: give 0.1"
                raise InputError(f"`{name}` {share}: {words}, or learn only one (`ignore_labels`, `ignore_captions`)")

    @property
    def text_tokenizer(self) -> TextTokenizer | None:
        """The tokenizer of its texts, which its folder holds; None if it has none."""
        return TextTokenizer(self.files[TEXT_TOKENIZER]) if TEXT_TOKENIZER in self.files else None

    @text_tokenizer.setter
    def text_tokenizer(self, tokenizer: TextTokenizer) -> None:
        self.files = {TEXT_TOKENIZER: tokenizer.content}

    @property
    def conditions(self) -> Conditions:
        """Return the conditions that this prior accepts."""
        hides = self.chosen.caption_dropout > 0 if self.num_words else self.label_dropout > 0
        classes = tuple(self.provenance.get("classes", ()))
        return Conditions(
            self.num_classes, classes, hides, self.num_words, self.text_length, tokenizer=self.text_tokenizer
        )

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the parts of a condition, besides labels, that this prior accepts."""
        accepted = {"text": self.num_words, "codes": self.given_grids, "features": self.given_features}
        return tuple(name for name, size in accepted.items() if size)

    def texts(self, given: Condition, batch_size: int, moment: Moment | None = None) -> Tensor | None:
        """Return the words (b, text_length) of each sample's text, PAD after its end, or None without a vocabulary.

        A row of PAD means no text. A moment hides a share `caption_dropout` of the texts.

        Raises `InputError` if they are of another shape or out of range, or a text is missing, but this prior was only
        trained with texts.
        """
        if not self.num_words:
            return None
        words = self.conditions.words(given, batch_size, self.device)
        if moment is None or not self.chosen.caption_dropout:
            return words
        hidden = moment.noise.uniforms("caption dropout").to(words.device) < self.chosen.caption_dropout
        return words.masked_fill(hidden[:, None], PAD)

    def coarser_codes(self, given: Condition, batch_size: int, moment: Moment | None = None) -> Codes:
        """Return the codes (b, *shape) of each grid that this prior must be given, HIDDEN where unknown.

        A moment hides a share `coarse_dropout` of them. Raises `InputError` if grids are missing, or codes are of
        another shape or out of range.
        """
        if not self.given_grids:
            return ()
        share = self.chosen.coarse_dropout
        check_coarser(given.codes, self.given_layout, self.given_grids, batch_size, may_hide=share > 0)
        codes = tuple(grid.to(self.device, torch.int64) for grid in given.codes)
        return hide_some(codes, share, moment.noise) if moment is not None and share else codes

    def features(self, given: Condition, batch_size: int) -> Tensor:
        """Return the features (b, D, *sites) that this prior must be given; a single site holds for the whole grid.

        Raises `InputError` if they are missing or of another shape.
        """
        shapes = [tuple(part.shape) for part in given.features]
        sides = [(1,) * len(grid.shape) for grid in self.layout[:1]] + [grid.shape for grid in self.layout[:1]]
        if len(shapes) != 1 or shapes[0] not in [(batch_size, self.given_features, *shape) for shape in sides]:
            needed = ", ".join(map(str, (batch_size, self.given_features, *sides[0])))
            raise InputError(f"`features` {shapes}: this prior must be given one tensor ({needed})")
        return given.features[-1].to(self.device)

    def label_rows(self, given: Condition, batch_size: int) -> Tensor:
        """Return each sample's row (b,) in a table of embeddings of labels; 0 if there are no classes.

        Raises `InputError` if a label is missing or is not one of the classes.
        """
        rows = self.conditions.rows(given, batch_size, self.device, self.takes)
        return torch.zeros(batch_size, dtype=torch.int64, device=self.device) if rows is None else rows
