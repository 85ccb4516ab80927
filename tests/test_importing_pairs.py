"""Checkpoints of other projects that hold a tokenizer and a prior: both give what the project's give.

Shapes: b batch, h w code grid.
"""

import pytest
import torch
import yaml
from foreign_checkpoints import draw, make, saved
from foreign_gpt import CHANNELS, CLASSES, ENTRIES, LAYERS, Net2Net, config_of

from codegrid import Condition, InputError, TwoStagePipeline, import_model, load
from codegrid.pipelines.import_model import ImportModel
from codegrid.pipelines.importing.run import import_into

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
START = 5
UNCONDITIONAL = {"unconditional": True, "sos_token": START, "cond_stage_config": {"target": "taming.models.dummy"}}


def trained(tmp_path, original=None, change=dict, **params):
    """The checkpoint that a training leaves, with its configuration in the place that it has there."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "2021-project.yaml").write_text(yaml.safe_dump(config_of(**params)))
    weights = change((original or make(Net2Net)).state_dict())
    return saved(tmp_path, {"state_dict": weights, "global_step": 3}, "checkpoints/last.ckpt")


@pytest.mark.parametrize("params", [{}, UNCONDITIONAL], ids=["classes", "unconditional"])
@torch.no_grad()
def test_logits_codes_and_pictures_are_those_of_the_original(params, tmp_path):
    original = make(Net2Net)
    pipeline = load(trained(tmp_path, original, **params))
    assert isinstance(pipeline, TwoStagePipeline) and pipeline.conditions.num_classes == (0 if params else CLASSES)
    tokenizer, (prior,) = pipeline.tokenizer, pipeline.priors
    images = draw(6, 3, 16, 16)
    (codes,) = original.first_stage_model.codes(images)
    assert torch.equal(pipeline.encode(images)[0], codes) and len(codes.unique()) > 4
    torch.testing.assert_close(tokenizer.decode((codes,)), original.first_stage_model.pictures((codes,)), **CLOSE)
    labels = torch.arange(1, CLASSES)
    first = torch.full((6,), START) if params else labels
    (logits,) = prior.logits((codes,), Condition(None if params else labels))
    expected = original.logits(codes, first)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert expected.std() > 0.1  # far from equal for all codes


@torch.no_grad()
def test_cached_drawing_gives_what_repeated_passes_through_the_original_give(tmp_path):
    original = make(Net2Net)
    pipeline = import_model(trained(tmp_path, original))
    labels = torch.tensor([3, 0])
    codes = torch.zeros(2, 4, 4, dtype=torch.int64)
    for site in range(16):
        codes.view(2, 16)[:, site] = original.logits(codes, labels).flatten(2)[:, :, site].argmax(1)
    for backend in ("torch", "plain"):
        ours = pipeline.sample(2, labels=labels, top_k=1, backend=backend, progress=False)
        assert torch.equal(ours.codes[0], codes)


def test_an_imported_pair_is_a_folder_like_that_of_a_run(tmp_path):
    path = trained(tmp_path)
    settings = ImportModel(from_=str(path), output=str(tmp_path / "run"))
    found = import_into(settings)
    assert found.keys() == {"tokenizer", "prior"} and import_into(settings) == {}  # finished
    assert found["prior"]["config"]["num_layers"] == LAYERS and found["prior"]["config"]["channels"] == CHANNELS
    pipeline, direct = load(tmp_path / "run"), import_model(path)
    assert pipeline.priors[0].fingerprint() == direct.priors[0].fingerprint()
    assert pipeline.priors[0].provenance["sha256"].keys() == {"last.ckpt"}
    assert "net2net" in (tmp_path / "run" / "prior" / "README.md").read_text()
    (tmp_path / "run" / "prior" / "model.safetensors").unlink()
    assert import_into(settings)  # made again
    again = ImportModel(from_=str(path), output=str(tmp_path / "run"), source="taming", overwrite=True)
    assert import_into(again).keys() == {"tokenizer"} and not (tmp_path / "run" / "prior").exists()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(InputError, match=r"also holds 'mine.txt'"):
        import_into(again)


def test_the_configuration_may_be_given_and_images_be_smaller_than_those_of_training(tmp_path):
    path = saved(tmp_path, make(Net2Net).state_dict())
    (tmp_path / "mine.json").write_text(yaml.safe_dump(config_of(**UNCONDITIONAL)))
    pipeline = import_model(path, size=(8, 16), model_config=tmp_path / "mine.json")
    assert pipeline.layout[0].shape == (2, 4) and pipeline.sample(2, progress=False).images.shape == (2, 3, 8, 16)
    with pytest.raises(InputError, match=r"`size`: images of this size have 36 codes, but .* 30 positions"):
        import_model(path, size=24, model_config=tmp_path / "mine.json")


def swapped(weights):
    return {**weights, "permuter.forward_shuffle_idx": torch.arange(16).flip(0)}


def seeing(weights):
    mask = weights["transformer.blocks.1.attn.mask"].clone()
    mask[0, 0, :2, :2] = True
    return {**weights, "transformer.blocks.1.attn.mask": mask}


REFUSED = {
    "depth": (
        dict, {"cond_stage_key": "depth", "cond_stage_config": {"target": "taming.x.VQModel"}}, "is given 'depth', and",
    ),
    "the first stage": (dict, {"cond_stage_config": "__is_first_stage__"}, "only one that is given a class or nothing"),
    "a condition": (
        lambda weights: {**weights, "cond_stage_model.encoder.conv_in.weight": torch.zeros(1)}, {},
        "it holds cond_stage_model.encoder.conv_in.weight, so its transformer is given more than a class",
    ),
    "an order": (swapped, {}, "its codes are not drawn row by row"),
    "a view of later codes": (seeing, {}, r"codes see later codes \(n_unmasked\)"),
    "no heads": (dict, {"transformer_config": {}}, "n_head None, but a whole number from 1"),
    "heads that do not fit": (
        dict, {"transformer_config": {"params": {"n_head": 5}}}, "no such model .* multiple of 10",
    ),
    "too many classes": (
        dict, {"cond_stage_config": {"target": "x.Labelator", "params": {"n_classes": ENTRIES + 1}}}, "n_classes 21",
    ),
    "a layer too few": (
        lambda weights: {name: each for name, each in weights.items() if "blocks.1.mlp.2.bias" not in name}, {},
        "holds no transformer.blocks.1.mlp.2.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_have_no_prior_for_is_refused_in_one_line(name, tmp_path):
    change, params, reason = REFUSED[name]
    path = trained(tmp_path, None, change, **params)
    with pytest.raises(InputError, match=reason) as caught:
        import_into(ImportModel(from_=str(path), output=str(tmp_path / "out")))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_transformer_over_more_codes_than_the_tokenizer_has_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"knows 21 codes, but its tokenizer has 20: .*`source` taming"):
        import_model(trained(tmp_path, make(Net2Net, known=ENTRIES + 1)))


def test_without_a_configuration_it_says_which_file_is_missing_and_what_can_be_had_without(tmp_path):
    path = saved(tmp_path, make(Net2Net).state_dict())
    with pytest.raises(InputError, match=r"give its project.yaml as `model_config`, or `source` taming"):
        import_model(path)
    assert import_model(path, source="taming", size=16).kind == "tokenizer"
    bad = (("{", "it cannot be read"), ("- 3", "it must map names to values"), ("model: 3", "has no model.params"))
    for content, reason in bad:
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(InputError, match=reason):
            import_model(path, size=16, model_config=tmp_path / "bad.yaml")
    with pytest.raises(InputError, match=r"`model_config` .*none.yaml: No such file"):
        import_model(path, model_config=tmp_path / "none.yaml")
