"""Product quantization (Jégou et al. 2011): each part of a latent has a codebook of its own."""

from typing import Any, ClassVar

from codegrid.limits import split_options
from codegrid.stage1_vqvae.options import ProductOptions

from .multi_codebook import MultiCodebookQuantizer


class ProductQuantizer(MultiCodebookQuantizer):
    """A latent in g parts of D/g numbers, each quantized by a codebook of its own; the codes are g grids of one shape.

    k_j = nearest(z[j]),   z_q = [e_{k_1}, ..., e_{k_g}]

    Args:
        num_quantizers: g.
        codebook: name of the quantizer that learns each codebook.
        options: those of that quantizer, for each of the codebooks; `embedding_dim` is the D of the whole latent.

    Raises `InputError` if an option is unknown, a value is out of range, or g does not divide D.

    Worked example: latents (8, 64, 7, 7) with num_quantizers=2, num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes ((8, 7, 7), (8, 7, 7)) in 0 ... 511; each codebook is (512, 32).
    """

    options: ClassVar[type] = ProductOptions
    groups_option: ClassVar[str] = "num_quantizers"

    def __init__(self, **options: Any) -> None:
        settings, of_books = split_options(self.options, options, type(self).__name__)
        super().__init__(settings, of_books, depths=1)
