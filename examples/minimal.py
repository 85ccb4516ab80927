"""Both stages on real handwritten digits: image → codes → prior → codes → image.

python examples/minimal.py        4 minutes on 2 cores; writes digits.png: new digits, a column for each class
"""

import torch

from codegrid import VQVAE, Condition, GatedPixelCNN, Moment, Noise, as_images, as_sheet, load_images, sample

BATCH, LR = 32, 4e-3


def train(model, losses_of, num_items, steps):
    """Train a model by gradient descent on its losses, with a batch of random items at each step."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = torch.randint(num_items, (BATCH,))
        moment = Moment(step, steps, Noise(seed=0, count=BATCH, purpose=("step", step)))
        losses = losses_of(batch, moment)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if isinstance(model, VQVAE):
            model.after_step(step, seed=0)  # each entry of the codebook moves to the latents that chose it
        if step % 100 == 0:
            print(f"step {step:,} of {steps:,}:", *(f"{name} {term:.3f}" for name, term in losses.terms.items()))
    model.eval()


def main(steps=(1000, 1500)):
    """Train a tokenizer, then a prior over its codes, and draw new digits."""
    torch.manual_seed(0)
    digits = load_images("mnist5k")  # 4,500 of them; the other 500 are split="test"
    images = as_images(digits.images)  # (4500, 1, 28, 28) in [-1, 1]

    # stage 1: image → codes → image
    tokenizer = VQVAE(digits.signal, digits.variance(), num_embeddings=256, hidden_channels=64)
    train(tokenizer, lambda batch, moment: tokenizer(images[batch], moment=moment).losses, len(images), steps[0])

    # the code dataset: image → codes
    (codes,) = tokenizer.encode(images)  # (4500, 7, 7), each code one of 256

    # stage 2: the prior learns p(codes | class)
    prior = GatedPixelCNN(tokenizer.layout, num_classes=10, num_layers=5, dropout=0.2)
    given = Condition(labels=digits.labels)
    train(prior, lambda batch, moment: prior((codes[batch],), given.rows(batch), moment), len(codes), steps[1])

    # prior → new codes → new images, a column for each class
    new_codes = sample(prior, 100, guidance_scale=1.5)
    as_sheet(tokenizer.decode(new_codes), columns=10).save("digits.png")


if __name__ == "__main__":
    main()
