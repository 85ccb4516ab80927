"""Stage 2: train a gated PixelCNN on exported codes.

python -m pipelines.train_prior --codes runs/digits/codes --output runs/digits/prior
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.configs import TrainPrior

if TYPE_CHECKING:
    from codegrid.data import CodeDataset
    from codegrid.stage2_prior import GatedPixelCNN


def train_prior(settings: TrainPrior) -> None:
    """Train the prior and save its model folder in `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    import torch

    from codegrid.data import CodeDataset
    from codegrid.data.held_out import hold_out
    from codegrid.data.images import evenly_spaced
    from codegrid.data.loading import in_batches, load_batches
    from codegrid.pipelines.evaluation.reconstruction import measure_prior
    from codegrid.pipelines.running.device import choose_execution, leave_together, start_accelerator
    from codegrid.pipelines.running.run_folder import Run
    from codegrid.pipelines.training.averaging import averaged
    from codegrid.pipelines.training.loop import Stage, finish, train
    from codegrid.pipelines.training.trackers import draw_samples, tracker_options
    from codegrid.stage2_prior.likelihood import nats_of

    accelerator = start_accelerator(settings.device, **tracker_options(settings))
    device = accelerator.device
    execution = choose_execution(settings, device)
    codes = CodeDataset(settings.codes)
    training, held_out = hold_out(codes, settings.validation_codes)
    facts = {"precision": execution.precision, "data": codes.identity(), "validation": held_out.identity()}
    run = Run(settings.output, settings, **facts)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    prior = build_prior(settings, codes).to(device, memory_format=execution.memory_format)
    condition = f"{prior.num_classes} classes" if prior.num_classes else "unconditional"
    say(f"{len(training)} grids of {'×'.join(map(str, codes.grid_shape))}, {condition}; {execution}")

    def loss(model: torch.nn.Module, batch: object) -> dict[str, torch.Tensor]:
        grids = batch.codes.to(device)
        logits = model(grids, batch.labels.to(device) if prior.num_classes else None)
        nats = nats_of(logits, grids).mean()
        return {"loss": nats, "bits": nats.detach() / math.log(2)}

    some = in_batches(evenly_spaced(len(held_out), 1000), 250)  # while training: `evaluate` takes all
    best = build_prior(settings, codes).to(device) if settings.keep == "best" else None
    stage = Stage(
        prior, training, loss, lambda model: measure_prior(model, load_batches(held_out, some)),
        average=averaged(prior, settings.ema_decay), best=best,
        criterion="bits_per_code", max_norm=settings.max_norm, items="grids", to_compile=[prior],
        draw=draw_samples(codes.grid_shape, settings.seed),
    )  # fmt: skip
    history = train(stage, settings, execution, run, accelerator)
    if accelerator.is_main_process:
        kept = best or stage.average.module
        figures = min(history, key=lambda figures: figures["bits_per_code"]) if best else history[-1]
        kept.provenance |= {"step": figures["step"], "history": history}
        kept.save_pretrained(settings.output)
        finish(run, keep_state=True)  # which alone holds the weights that were not averaged
        say(
            f"{settings.output}: {figures['bits_per_code']:.3f} bits per code on held-out grids, "
            f"{settings.keep} after {figures['step']:,} of {settings.steps:,} steps"
        )
    leave_together(accelerator)


def build_prior(settings: TrainPrior, codes: CodeDataset) -> GatedPixelCNN:
    """The prior to be trained on these codes, with weights that follow from the seed."""
    import torch

    from codegrid.stage2_prior import GatedPixelCNN

    classes = [] if settings.unconditional else codes.classes
    torch.manual_seed(settings.seed)
    prior = GatedPixelCNN(
        num_embeddings=codes.num_embeddings,
        channels=settings.channels,
        num_layers=settings.num_layers,
        num_classes=len(classes),
        dropout=settings.dropout,
        label_dropout=settings.label_dropout,
    )
    prior.provenance = {
        "tokenizer_fingerprint": codes.header.tokenizer_fingerprint,
        "grid_shape": list(codes.grid_shape),
        "classes": classes,
    }
    return prior


def main() -> None:
    """The command line."""
    run_script(TrainPrior, train_prior)


if __name__ == "__main__":
    main()
