"""Models of other projects with random weights, and files of them."""

import torch


def make(kind, seed=0, **options):
    """A model of another project with random weights, none of which is 0 or 1 by default."""
    torch.manual_seed(seed)
    model = kind(**options).eval()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            spread = 0.2 if weight.ndim == 1 else 1.6 / max(1, weight[0].numel()) ** 0.5
            weight.copy_(torch.randn_like(weight) * spread + ("norm" in name and name.endswith("weight")))
    return model


def draw(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def saved(tmp_path, content, name="model.ckpt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name
