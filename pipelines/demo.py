"""Both stages on 5,000 real handwritten digits: tokenizer, codes, prior, samples, figures.

python -m pipelines.demo
"""

import json
from pathlib import Path

from codegrid.pipelines.evaluate import evaluate
from codegrid.pipelines.export_codes import export_codes
from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.configs import ExportCodes, TrainPrior, TrainTokenizer
from codegrid.pipelines.running.use_configs import Demo, Evaluate, Sample
from codegrid.pipelines.sample import sample
from codegrid.pipelines.train_prior import train_prior
from codegrid.pipelines.train_tokenizer import train_tokenizer


def demo(settings: Demo) -> None:
    """Run every stage into a folder of its own below `settings.output`; what is finished already is kept."""
    place = Path(settings.output)
    folders = {name: str(place / name) for name in ("tokenizer", "codes", "codes_test", "prior", "samples", "figures")}
    tokenizer, prior = folders["tokenizer"], folders["prior"]

    say("1/5 tokenizer: images → codes → images")
    train_tokenizer(TrainTokenizer(output=tokenizer, steps=2000, num_embeddings=256, hidden_channels=64))
    say("2/5 codes of the training digits, and of those held out")
    export_codes(ExportCodes(tokenizer=tokenizer, output=folders["codes"]))
    export_codes(ExportCodes(tokenizer=tokenizer, output=folders["codes_test"], split="test"))
    say("3/5 prior: learns which codes follow which")
    train_prior(
        TrainPrior(
            codes=folders["codes"], validation_codes=folders["codes_test"], output=prior, steps=2000, batch_size=64,
            lr=0.002, num_layers=8, dropout=0.2, label_dropout=0.0, keep="last",
        )
    )  # fmt: skip
    say("4/5 samples: new codes → new images")
    sample(Sample(tokenizer=tokenizer, prior=prior, output=folders["samples"]))
    say("5/5 figures on the held-out digits")
    evaluate(Evaluate(tokenizer=tokenizer, prior=prior, output=folders["figures"]))

    figures = json.loads((place / "figures" / "metrics.json").read_text())
    say(
        f"\nOf {figures['images']} held-out digits: reconstruction error {figures['reconstruction_error']:.3f}, "
        f"PSNR {figures['psnr']:.1f} dB, {figures['codebook_usage']:.0%} of the codebook in use, "
        f"{figures['bits_per_code']:.2f} bits per code.\n"
        f"New digits, a column for each class:  {place / 'samples' / 'samples.png'}\n"
        f"Held-out digits and reconstructions:  {place / 'figures' / 'reconstructions.png'}\n"
        f"More:  python -m pipelines.sample --tokenizer {tokenizer} --prior {prior} --output runs/sevens --labels 7"
    )


def main() -> None:
    """The command line."""
    run_script(Demo, demo)


if __name__ == "__main__":
    main()
