"""Both stages from Python: codes out of the priors, images out of the tokenizer.

Shapes: n samples, b samples of a batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self, Unpack

from codegrid.codes import Codes, describe_layout
from codegrid.data.conversion import as_images
from codegrid.data.loading import in_order
from codegrid.errors import InputError
from codegrid.files import write_folder
from codegrid.hub import PIPELINE_FOLDERS, fetch, push_folder
from codegrid.limits import BatchSize, check_value
from codegrid.model_card import render_pipeline_card, write_card
from codegrid.model_folder import load_model, picture_of
from codegrid.pipelines.running.places import find_priors, find_tokenizers, list_priors, tokenizer_name
from codegrid.progress import progress_bar
from codegrid.protocols import Classifier
from codegrid.sampling_config import DrawingSettings, sampling_configs
from codegrid.stage2_prior.written import Labels, Prompts

from .drawer import Drawer
from .kept_part import Keep, choose_part
from .pairing import prior_names
from .paste import make_paste
from .ranking import Ranking, nats_of_texts, words_to_rank
from .rejection import add_rejection
from .request import Request, complete_codes, make_request
from .samples import Images, OutputType, Samples, as_output
from .tokenizers import encode_batches, load_tokenizer, need_images

Source = str | Path
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class TwoStagePipeline(Drawer):
    """A tokenizer, and priors that were trained on its codes and draw all of its grids together.

    Calling it draws samples: `pipeline(16, labels=["cat"]).images` is `pipeline.sample(16, labels=["cat"]).images`.

    Args:
        tokenizer: any tokenizer.
        priors: one, or several that each draw one or more grids, coarse to fine.

    Raises `InputError` if a prior learnt the codes of another tokenizer (the shapes might fit, but the pictures would
    be garbage), or if the priors' grids are not those of the tokenizer.
    """

    def __repr__(self) -> str:
        signal, classes, words = self.tokenizer.signal, self.conditions.num_classes, self.conditions.num_words
        lines = [f"tokenizer: {type(self.tokenizer).__name__}, {'×'.join(map(str, signal.shape))} {signal.kind}s as "]
        lines[0] += describe_layout(self.layout)
        for name, prior in zip(prior_names(len(self.priors)), self.priors, strict=True):
            lines.append(f"{name}: {type(prior).__name__}, {describe_layout(prior.layout)}")
        lines += [f"texts of {words:,} words"] * (words > 0)
        lines += [f"classes: {classes or 'none'}"] * (classes > 0 or not words)
        lines.append(f"device: {self.device}")
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"

    @classmethod
    def from_pretrained(cls, folder: Source, device: str | torch.device = "cpu") -> Self:
        """Load a folder that `save_pretrained` or a run wrote, or a repository of the hub as `hf:owner/name`,
        or models that come with the package as `codegrid:digits`.

        It holds `tokenizer/` and `prior/`, or `prior-0/`, `prior-1/`, ... coarse to fine. `tokenizer-0/` and
        `tokenizer-1/` are a tokenizer and one over its codes.
        """
        found = fetch(folder, PIPELINE_FOLDERS)
        return cls.from_parts(
            find_tokenizers(found) or found / "tokenizer", find_priors(found) or found / "prior", device
        )

    @classmethod
    def from_parts(
        cls,
        tokenizer: Source | Sequence[Source],
        priors: Source | Sequence[Source],
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load model folders, or hub names `hf:owner/name`; several priors coarse to fine.

        Of several tokenizers, each is over the codes of the one before.
        """
        several = [priors] if isinstance(priors, str | Path) else priors
        return cls(load_tokenizer(tokenizer, device), *(load_model(prior, device, "prior") for prior in several))

    def save_pretrained(self, folder: Source) -> None:
        """Write all models into subfolders of a folder that `from_pretrained` reads, and a model card.

        Raises `InputError` if the folder holds other priors, which would be loaded with these or in their place.
        """
        folder, names = Path(folder), prior_names(len(self.priors))
        others = set(list_priors(folder)) - set(names)
        if others:
            raise InputError(f"{folder} holds other priors ({', '.join(sorted(others))}): choose another folder")
        stack = self.tokenizer.stack
        tokenizers = ["tokenizer"] if len(stack) == 1 else [tokenizer_name(number) for number in range(len(stack))]
        for name, model in zip((*tokenizers, *names), (*stack, *self.priors), strict=True):
            model.save_pretrained(folder / name, picture_of(model))
        with write_folder(folder) as staging:
            write_card(staging, folder, render_pipeline_card(repr(self)))

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload all models to the Hugging Face hub, into one repository `owner/name`, and return its address."""
        return push_folder(self.save_pretrained, repo_id, private)

    def to(self, device: str | torch.device) -> Self:
        """Move all models to a device, and return the pipeline."""
        for model in (self.tokenizer, *self.priors):
            model.to(device)
        return self

    def sample(
        self,
        num_samples: int = 1,
        labels: Labels | None = None,
        seed: int | None = None,
        batch_size: int = 128,
        reject_with: Source | Classifier | None = None,
        reject_keep: float | None = None,
        backend: str = "auto",
        output_type: OutputType = "pt",
        progress: bool = True,
        prompts: Prompts | None = None,
        **settings: Unpack[DrawingSettings],
    ) -> Samples:
        """Draw new images.

        Args:
            num_samples: n.
            labels: numbers or names of classes, or `none`; one for each sample or one for all. None: all classes in
                turn, or with prompts no particular one.
            seed: sample i depends only on (seed, i). None: a new one at each call, which the result records.
            batch_size: samples drawn at once.
            reject_with: a classifier that keeps the best draw of several, the likeliest to show its class: a loaded
                one, its folder, or `classifier` to train one first on the tokenizer's data set. Or `likelihood`: the
                priors keep the draw whose likelihood its label or prompt raises most.
            reject_keep: the share of the draws to keep: each sample is the best of ⌈1 / reject_keep⌉. None: 0.25.
            backend: how the priors compute; the codes are the same up to rounding.
            output_type: pt for tensors (n, c, H, W) in [-1, 1], as everywhere in this package; np for arrays
                (n, H, W, c) in [0, 1]; pil for PIL pictures.
            progress: show a progress bar.
            prompts: texts, for priors over texts: one for each sample or one for all. None: no text.
            settings: fields of `SamplingConfig`: one value for all priors, or a list with one for each.

        Raises `InputError` if a prior does not support a setting.
        """
        configs = sampling_configs(len(self.priors), **settings)
        request = make_request(self.priors, num_samples, labels, seed, configs, prompts=prompts)
        return self.answer(request, batch_size, backend, output_type, progress, reject_with, reject_keep)

    __call__ = sample

    def complete(
        self,
        images: Images,
        keep: Keep,
        num_completions: int = 1,
        labels: Labels | None = None,
        seed: int | None = None,
        batch_size: int = 128,
        reject_with: Source | Classifier | None = None,
        reject_keep: float | None = None,
        backend: str = "auto",
        output_type: OutputType = "pt",
        progress: bool = True,
        paste: bool = False,
        prompts: Prompts | None = None,
        **settings: Unpack[DrawingSettings],
    ) -> Samples:
        """Keep a part of images and draw the rest.

        Args:
            images: as for `encode`.
            keep: how many rows of codes to keep, from the top, counted in the finest grid; or a mask (H, W) over the
                known pixels, with a prior that can keep any codes; or a mask over the sites to keep, if all grids have
                one shape. A tensor of several masks has one for each image. With a mask over pixels, codes are kept
                whose own pixels are all known, and made as if nothing but the known pixels were there. Rows and sites
                keep the codes of the whole image, which may tell something of the rest of it.
            num_completions: of each image; those of one image follow each other.
            labels: as for `sample`, one for each image or one for all. None: no particular class, if the prior learnt
                grids without a label.
            paste: put the known pixels into the completions, with a soft seam; for masks over pixels.
            prompts: one for each image or one for all. None: no text.

        All other parameters are those of `sample`.

        Raises `InputError` if the images have the wrong size, no code would be kept, or a prior cannot keep these.
        """
        configs = sampling_configs(len(self.priors), **settings)
        given = self._of_size(images)
        part = choose_part(self.tokenizer, keep, len(given))
        codes = self.encode(part.of_known(given), batch_size)
        request = complete_codes(self.priors, codes, part.masks, num_completions, labels, seed, configs, prompts)
        if paste:
            if part.known is None:
                raise InputError("`paste` needs `keep` to be a mask over pixels: it says which ones to paste")
            request = request._replace(paste=make_paste(given.__getitem__, part.known, self.layout))
        return self.answer(request, batch_size, backend, output_type, progress, reject_with, reject_keep)

    def answer(
        self,
        request: Request,
        batch_size: int = 128,
        backend: str = "auto",
        output_type: OutputType = "pt",
        progress: bool = False,
        reject_with: Source | Classifier | None = None,
        reject_keep: float | None = None,
    ) -> Samples:
        """Draw all samples of a request. Returns them on the CPU."""
        check_value("batch_size", batch_size, BatchSize)
        check_value("output_type", output_type, OutputType)  # now, not after everything is drawn
        if output_type != "pt":
            need_images(self.tokenizer, f"`output_type` {output_type} shows")
        request = add_rejection(request, self.tokenizer, self.priors, reject_with, reject_keep)
        batches = []
        words = f"drawing {request.num_samples:,}{request.chosen}"
        with progress_bar(total=request.num_samples, desc=words, bar_format=BAR, disable=not progress) as bar:
            for rows in in_order(request.num_samples, batch_size):

                def tell(done: float, rows: range = rows) -> None:
                    bar.update(rows.start + done * len(rows) - bar.n)

                batches.append(self.sample_rows(request, rows, backend, tell if progress else None))
        images = torch.cat([batch.images.cpu() for batch in batches])
        codes = tuple(torch.cat(grids).cpu() for grids in zip(*[batch.codes for batch in batches], strict=True))
        images = as_output(images, output_type)
        return Samples(images, codes, request.labels, request.seed, tuple(self.classes), request.prompts)

    def encode(self, images: Images, batch_size: int = 128) -> Codes:
        """Return the codes of images, on the CPU.

        Args:
            images: (n, c, H, W) float in [-1, 1], of the tokenizer's size; or anything else that `codegrid.as_images`
                accepts, such as PIL pictures and NumPy arrays, one or a list, converted to its size and channels.

        Raises `InputError` if they have another size, or are not images.
        """
        check_value("batch_size", batch_size, BatchSize)
        return encode_batches(self.tokenizer, self._of_size(images).split(batch_size))

    def reconstruct(self, images: Images, output_type: OutputType = "pt") -> Any:
        """Encode and decode images, given as for `encode` but of any size. Returns the reconstructions on the CPU."""
        images = self._prepare(images).to(self.device)
        return as_output(self.tokenizer.reconstruct(images).clamp(-1, 1).cpu(), output_type)

    def rank_captions(self, images: Images, captions: Sequence[str], batch_size: int = 128, seed: int = 0) -> Ranking:
        """Rank captions for each of some images, by how likely priors over texts find its codes under each.

        Args:
            images: as for `encode`.
            captions: all of them are ranked for each image.
            batch_size: images computed at once.
            seed: of the noise by which priors that only have a bound estimate it; it is the same for all captions.

        Raises `InputError` if no prior reads texts, or one that does has no likelihood.
        """
        texts = words_to_rank(self.priors, captions)  # now, not after everything is encoded
        codes = self.encode(images, batch_size)
        return Ranking(tuple(captions), nats_of_texts(self.priors, codes, texts, batch_size, seed))

    def _of_size(self, images: Images) -> torch.Tensor:
        images, expected = self._prepare(images), self.tokenizer.signal.shape
        if tuple(images.shape[1:]) != expected:
            raise InputError(f"`images` of shape {tuple(images.shape)}: this tokenizer takes (n, *{expected})")
        return images

    def _prepare(self, images: Images) -> torch.Tensor:
        if isinstance(images, torch.Tensor) and images.is_floating_point():
            return images
        return as_images(images, self.tokenizer.signal.size, self.tokenizer.signal.channels)
