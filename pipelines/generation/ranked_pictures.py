"""Captions ranked for a folder of pictures: the body of `codegrid rank-captions`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from codegrid.data.images import to_float
from codegrid.data.loading import in_order, load_batches
from codegrid.file_names import printable
from codegrid.files import write_json
from codegrid.locks import releasing
from codegrid.pipelines.rank_captions import RankCaptions
from codegrid.pipelines.running.cli import print_once, print_plan
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import Run
from codegrid.progress import progress_bar

from .completion import pictures_in
from .pipeline import TwoStagePipeline
from .ranking import Ranking, nats_of_texts, words_to_rank

RANKING_FILE = "ranking.json"
SHOWN = 20  # pictures whose likeliest caption is printed


@releasing()
def rank_captions(settings: RankCaptions) -> None:
    """Write ranking.json into `settings.output`, and print the likeliest caption of the first pictures.

    Raises `InputError` if no prior reads texts, or there are no pictures.
    """
    pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, choose_device(settings))
    count = len(settings.captions)
    texts = words_to_rank(pipeline.priors, settings.captions)
    images = pictures_in(settings.images, pipeline.tokenizer, "images")
    facts = {"tokenizer": pipeline.tokenizer.fingerprint(), "images_found": images.fingerprint()}
    run = Run(settings.output, settings, **facts, priors=[prior.fingerprint() for prior in pipeline.priors])
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    if settings.dry_run:
        return print_plan(f"{len(images):,} pictures, and {count:,} captions to rank for each")
    run.start()
    nats = []
    with progress_bar(total=len(images) * count, desc="ranking captions") as bar:
        numbers = in_order(len(images), settings.batch_size)
        for rows, batch in zip(numbers, load_batches(images, numbers), strict=True):
            codes = pipeline.encode(to_float(batch.images), settings.batch_size)
            first, size = rows.start, settings.batch_size
            nats.append(nats_of_texts(pipeline.priors, codes, texts, size, settings.seed, bar.update, first))
    ranking, files = Ranking(settings.captions, torch.cat(nats)), images.files or []
    is_bound = any(prior.likelihood == "bound" for prior in pipeline.priors)
    results = {"likelihood": "bound" if is_bound else "exact", "pictures": _by_picture(ranking, files)}
    run.finish_with(lambda folder: write_json(Path(folder) / RANKING_FILE, results))
    for file, caption in list(zip(files, ranking.best, strict=True))[:SHOWN]:
        print_once(f"{file}: {printable(caption)}")
    print_once(f"{run.shown}: {count:,} captions, ranked for {len(files):,} pictures in {RANKING_FILE}")


def _by_picture(ranking: Ranking, files: list[str]) -> list[dict[str, Any]]:
    """Return, as JSON values, the captions of each picture with their nats, the likeliest first."""
    rows = zip(files, ranking.order.tolist(), ranking.nats.tolist(), strict=True)
    return [
        {"file": file, "captions": [{"text": ranking.captions[place], "nats": nats[place]} for place in order]}
        for file, order, nats in rows
    ]
