"""Stage 2: train a gated PixelCNN on exported codes.

python -m pipelines.train_prior --codes runs/digits/codes --output runs/digits/prior
"""

import math

from .cli import run_script, say
from .configs import TrainPrior


def train_prior(settings: TrainPrior) -> None:
    """Train the prior and save its model folder in `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    import torch
    import torch.nn.functional as F

    from data import CodeDataset
    from data.images import evenly_spaced
    from stage2_prior import GatedPixelCNN

    from .averaging import averaged
    from .batches import in_batches, load_batches
    from .held_out import hold_out
    from .measure import measure_prior
    from .run_folder import Run
    from .runtime import choose_precision, leave_together, start_accelerator
    from .training import Stage, finish, train

    accelerator = start_accelerator(settings.device)
    device = accelerator.device
    precision = choose_precision(settings.precision, device)
    codes = CodeDataset(settings.codes)
    training, held_out = hold_out(codes, settings.validation_codes)
    num_classes = 0 if settings.unconditional else len(codes.classes)
    run = Run(settings.output, settings, precision=precision, data=codes.identity(), validation=held_out.identity())
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    condition = f"{num_classes} classes" if num_classes else "unconditional"
    say(f"{len(training)} grids of {'×'.join(map(str, codes.grid_shape))}, {condition}, {precision}")

    torch.manual_seed(settings.seed)
    prior = GatedPixelCNN(
        num_embeddings=codes.num_embeddings,
        channels=settings.channels,
        num_layers=settings.num_layers,
        num_classes=num_classes,
        dropout=settings.dropout,
    ).to(device, memory_format=torch.channels_last)
    average = averaged(prior)

    def loss(model: torch.nn.Module, batch: object) -> dict[str, torch.Tensor]:
        grids = batch.codes.to(device)
        logits = model(grids, batch.labels.to(device) if num_classes else None)
        nats = F.cross_entropy(logits.float(), grids)
        return {"loss": nats, "bits": nats.detach() / math.log(2)}

    batches = in_batches(evenly_spaced(len(held_out), 2000), 250)
    stage = Stage(
        prior, training, loss, lambda model: measure_prior(model.module, load_batches(held_out, batches)), average,
        max_norm=1.0, items="grids",
    )  # fmt: skip
    history = train(stage, settings, precision, run, accelerator)
    if accelerator.is_main_process:
        best = average.module
        best.provenance = {
            "tokenizer_fingerprint": codes.header.tokenizer_fingerprint,
            "grid_shape": list(codes.grid_shape),
            "classes": codes.classes if num_classes else [],
            "history": history,
        }
        best.save_pretrained(settings.output)
        finish(run)
        say(f"{settings.output}: {history[-1]['bits_per_code']:.3f} bits per code on held-out grids")
    leave_together(accelerator)


def main() -> None:
    """The command line."""
    run_script(TrainPrior, train_prior)


if __name__ == "__main__":
    main()
