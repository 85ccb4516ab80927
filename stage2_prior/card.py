"""What the card of a prior says."""

from codegrid.model_card import Card

CARD = Card(
    title="A gated PixelCNN prior over image codes",
    what=(
        "It draws new grids of codes: a gated PixelCNN (van den Oord et al., *Conditional Image Generation with "
        "PixelCNN Decoders*, arXiv 1606.05328), trained with Codegrid. It cannot make images alone: the tokenizer "
        "whose codes it learnt decodes them, and no other is accepted."
    ),
    tags=("pixelcnn", "vq-vae", "autoregressive"),
    pipeline_tag="unconditional-image-generation",
    usage="""`MODEL` is this folder, `TOKENIZER` that of its tokenizer; or `hf:owner/name` for a repository of the hub.

```
python -m pipelines.sample --tokenizer TOKENIZER --prior MODEL --output samples
```

```python
from stage1_vqvae import VQVAE
from stage2_prior import GatedPixelCNN, sample_cached

prior = GatedPixelCNN.from_pretrained("MODEL")
codes = sample_cached(prior, 16, {height}, {width}, seed=0)  # (16, h, w) int64
images = VQVAE.from_pretrained("TOKENIZER").decode(codes)  # in [-1, 1]
```""",
)
