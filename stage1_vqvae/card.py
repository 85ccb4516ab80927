"""What the card of a tokenizer says."""

from codegrid.model_card import Card

CARD = Card(
    title="A VQ-VAE tokenizer",
    what=(
        "It turns images into small grids of discrete codes, and such grids back into images: a VQ-VAE (van den Oord, "
        "Vinyals, Kavukcuoglu, *Neural Discrete Representation Learning*, arXiv 1711.00937), trained with Codegrid. "
        "New images need a prior over its codes."
    ),
    tags=("vq-vae", "image-tokenizer", "discrete-representation"),
    usage="""`MODEL` is this folder, or `hf:owner/name` for a repository of the hub.

```python
from stage1_vqvae import VQVAE

tokenizer = VQVAE.from_pretrained("MODEL")
codes = tokenizer.encode(images)  # (b, c, H, W) in [-1, 1] → (b, h, w) int64
images = tokenizer.decode(codes)
```

```
python -m pipelines.export_codes --tokenizer MODEL --dataset imagefolder --data-root PICTURES --output codes
python -m pipelines.decode_codes --tokenizer MODEL --codes codes --output decoded
```""",
)
