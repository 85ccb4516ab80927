"""Models for tests that need no training: both stages, of one grid or of several."""

import torch

from codegrid.codes import Signal
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior.pixelcnn.network import GatedPixelCNN


def make_pipeline(grids_of_priors=((0,),), label_dropout=0.1):
    """Untrained models: as many codes a site as there are grids, and a prior for each tuple of grids."""
    torch.manual_seed(0)
    number = sum(map(len, grids_of_priors))
    options = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 8, "num_quantizers": number}
    tokenizer = VQVAE(Signal("image", 1, (12, 20)), quantizer="residual", **options).eval()
    priors = []
    for grids in grids_of_priors:
        layout = [tokenizer.layout[grid] for grid in grids]
        options = {"channels": 8, "num_layers": 2, "label_dropout": label_dropout}
        priors.append(GatedPixelCNN(layout, grids, num_classes=2, **options).eval())
        priors[-1].provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": ["0", "1"]}
        # an untrained prior is nearly uniform: labels and guidance must make a difference
        for layer in priors[-1].network.modules():
            if isinstance(layer, torch.nn.Embedding):
                torch.nn.init.normal_(layer.weight, std=3)
    return TwoStagePipeline(tokenizer, *priors)
