"""The prior: what each site sees.

Shapes: h w code grid.
"""

import pytest
import torch

from codegrid.stage2_prior import NO_LABEL, GatedPixelCNN, sample_cached

SHAPES = [(4, 7), (7, 4), (1, 5), (5, 1)]


def build(first_kernel=5, kernel=3, num_layers=3, num_classes=0, **options):
    torch.manual_seed(0)
    # wide enough that no site has all its features cut off by the ReLU of the head
    return GatedPixelCNN(8, 24, num_layers, num_classes, first_kernel, kernel, **options).double()


def sites_that_see(site, height, width, first_kernel, kernel, num_layers):
    """Sites whose logits may depend on `site`, found by walking through the kernels layer by layer."""
    vertical, horizontal = set(), set()
    grid = [(r, c) for r in range(height) for c in range(width)]
    for layer in range(num_layers):
        reach = (first_kernel if layer == 0 else kernel) // 2
        first = layer == 0
        # the vertical stack looks up to `reach` rows up, and in later layers at its own row, `reach` to each side
        seen_above = {
            (r, c) for r, c in grid
            if any((r - up, c + side) in ({site} if first else vertical)
                   for up in range(1 if first else 0, reach + 1) for side in range(-reach, reach + 1))
        }  # fmt: skip
        seen_left = {
            (r, c) for r, c in grid
            if any((r, c - left) in ({site} if first else horizontal) for left in range(1 if first else 0, reach + 1))
        }  # fmt: skip
        vertical = seen_above
        horizontal = (set() if first else horizontal) | seen_left | seen_above
    return horizontal


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("height,width", SHAPES)
@pytest.mark.parametrize("first_kernel,kernel", [(5, 3), (3, 5), (7, 3)])
def test_a_site_is_seen_by_exactly_the_later_sites_that_the_kernels_reach(
    training, height, width, first_kernel, kernel
):
    prior = build(first_kernel, kernel).train(training)
    codes = torch.randint(0, 8, (1, height, width))
    before = prior(codes)
    for row in range(height):
        for column in range(width):
            changed = codes.clone()
            changed[0, row, column] = (changed[0, row, column] + 1) % 8
            difference = (prior(changed) - before)[0].abs().amax(0)
            seen = {(r, c) for r in range(height) for c in range(width) if difference[r, c] > 0}
            assert seen == sites_that_see((row, column), height, width, first_kernel, kernel, 3)
            assert all(site > (row, column) for site in seen)


def test_no_site_within_the_reach_of_many_layers_is_blind():
    prior, codes = build(num_layers=8), torch.zeros(1, 6, 6, dtype=torch.int64)
    before = prior(codes)
    codes[0, 0, 0] = 1
    changed = (prior(codes) - before)[0].abs().amax(0) > 0
    assert changed.sum() == 35 and not changed[0, 0]


def test_other_images_of_the_batch_do_not_matter():
    prior, codes = build().train(), torch.randint(0, 8, (3, 4, 7))
    torch.testing.assert_close(prior(codes)[1:2], prior(codes[1:2]))


def test_forward_and_a_backward_pass_leave_the_state_dict_as_it_was():
    prior = build()
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    prior(torch.randint(0, 8, (2, 4, 7))).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())


def test_codes_are_categories_whose_numbers_do_not_matter():
    prior, codes = build(), torch.randint(0, 8, (2, 4, 7))
    loss = torch.nn.functional.cross_entropy(prior(codes), codes)
    new_name = torch.randperm(8)
    renamed = build()
    renamed.load_state_dict(prior.state_dict())
    with torch.no_grad():
        renamed.embedding.weight[new_name] = prior.embedding.weight
        renamed.head[-1].weight[new_name] = prior.head[-1].weight
        renamed.head[-1].bias[new_name] = prior.head[-1].bias
    torch.testing.assert_close(torch.nn.functional.cross_entropy(renamed(new_name[codes]), new_name[codes]), loss)


def test_the_label_changes_the_logits_of_every_site():
    prior, codes = build(num_classes=3), torch.zeros(2, 4, 7, dtype=torch.int64)
    logits = prior(codes, torch.tensor([0, 2]))
    assert ((logits[0] - logits[1]).abs().amax(0) > 0).all()


@pytest.mark.parametrize("num_classes,labels", [(3, None), (0, torch.zeros(2, dtype=torch.int64)), (3, torch.zeros(5))])
def test_labels_that_do_not_fit_the_prior_are_refused(num_classes, labels):
    with pytest.raises(ValueError, match="label"):
        build(num_classes=num_classes)(torch.zeros(2, 4, 7, dtype=torch.int64), labels)


@pytest.mark.parametrize("kernel", [1, 4])
def test_a_kernel_without_a_middle_is_refused(kernel):
    with pytest.raises(ValueError, match="odd"):
        build(kernel=kernel)


def test_label_dropout_hides_labels_in_training_alone():
    prior = build(num_classes=3, label_dropout=0.25)
    labels = torch.zeros(4000, dtype=torch.int64)
    assert torch.equal(prior.eval().conditions(labels, 4000), labels)
    hidden = prior.train().conditions(labels, 4000)
    assert set(hidden.tolist()) == {0, 3} and 0.22 < (hidden == 3).double().mean() < 0.28


def test_a_prior_that_learnt_without_labels_can_be_asked_without():
    codes, labels = torch.randint(0, 8, (2, 3, 4)), torch.tensor([0, 2])
    prior = build(num_classes=3, label_dropout=0.5).eval()
    without = prior(codes)
    assert not torch.allclose(without, prior(codes, labels))
    mixed = prior(codes, torch.tensor([0, NO_LABEL]))
    assert torch.allclose(mixed, torch.cat([prior(codes, labels)[:1], without[1:]]))
    with torch.no_grad():
        for layer in prior.layers:  # the classes have no part in it
            layer.condition.weight[:3] += 1
    assert torch.equal(without, prior(codes))
    with pytest.raises(ValueError, match="learnt no grids without a label"):
        build(num_classes=3)(codes)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_step_in_bfloat16_is_in_bfloat16_throughout(num_classes):
    prior = build(num_classes=num_classes).float()
    seen = set()
    for layer in prior.layers:
        layer.register_forward_hook(lambda layer, inputs, outputs: seen.update(x.dtype for x in outputs))
    with torch.autocast("cpu", torch.bfloat16):
        prior(torch.randint(0, 8, (2, 3, 4)), torch.tensor([0, 2]) if num_classes else None)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("label,label_dropout", [(3, 0.0), (3, 0.5), (-2, 0.5)])
def test_a_label_that_is_no_class_is_refused_by_name(label, label_dropout):
    prior = build(num_classes=3, label_dropout=label_dropout)
    for ask in (
        lambda: prior(torch.zeros(2, 3, 4, dtype=torch.int64), torch.tensor([0, label])),
        lambda: sample_cached(prior, 2, 3, 4, labels=[0, label]),
    ):
        with pytest.raises(ValueError, match=f"label {label}, but this prior knows the classes 0 to 2"):
            ask()
