"""Checkpoints of other projects: each gives what its project gives, and no file can do harm.

Shapes: b batch, c channels, H W image.
"""

import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch
from foreign_vqgans import VAR, LlamaGen, Taming, TamingGumbel
from foreign_vqvaes import DallE, MishaLaskin, Rosinality, Sonnet, Zalando
from safetensors.torch import save_file

from codegrid import InputError, import_model, load
from codegrid.pipelines.import_model import ImportModel
from codegrid.pipelines.importing.names import SOURCES
from codegrid.pipelines.importing.run import import_into
from codegrid.pipelines.importing.sources import find_source

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


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


# project → a model of its kind, how its checkpoint wraps the weights, and the sides of images
MODELS = {
    "taming": (lambda: make(Taming), lambda weights: {"state_dict": weights, "global_step": 3}, (16, 24)),
    "taming-without-attention": (
        lambda: make(Taming, attends=(), mult=(1, 3), channels=1),
        lambda weights: {f"first_stage_model.{name}": each for name, each in weights.items()},
        (16, 24),
    ),
    "taming-with-gumbel": (lambda: make(TamingGumbel), lambda weights: {"state_dict": weights}, (16, 24)),
    "llamagen": (lambda: make(LlamaGen), lambda weights: {"model": weights}, (16, 24)),
    "var": (lambda: make(VAR), dict, (32, 32)),
    "var-with-one-phi": (lambda: make(VAR, phi=1), dict, (32, 32)),
    "rosinality": (
        lambda: make(Rosinality),
        lambda weights: {f"module.{name}": each for name, each in weights.items()},
        (24, 16),
    ),
    "rosinality-without-blocks": (lambda: make(Rosinality, blocks=0), dict, (24, 16)),
    "mishalaskin": (lambda: make(MishaLaskin), lambda weights: {"model": weights, "results": {"n": 1}}, (24, 16)),
    "zalando": (lambda: make(Zalando, entries=200), dict, (24, 16)),
    "zalando-without-averages": (lambda: make(Zalando, entries=200, blocks=1, moves=False), dict, (24, 16)),
}


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_latents_codes_and_pictures_are_those_of_the_original(case, tmp_path):
    build, wrap, size = MODELS[case]
    original = build()
    ours = import_model(saved(tmp_path, wrap(original.state_dict())), size=size)
    images = draw(2, ours.signal.channels, *size)
    theirs = original.both_latents(images) if hasattr(original, "both_latents") else (original.latents(images),)
    torch.testing.assert_close(ours.encode_latents(images), theirs, **CLOSE)
    codes = original.codes(images)
    assert all(map(torch.equal, ours.encode(images), codes)) and len(codes) == len(ours.layout)
    assert len({int(code) for of_grid in codes for code in of_grid.flatten()}) > 4  # a test of many codes
    torch.testing.assert_close(ours.decode(codes), original.pictures(codes), **CLOSE)
    assert ours.provenance["imported_from"].endswith(f"({case.partition('-w')[0]})")


@pytest.mark.parametrize("blocks", [0, 2])
def test_parameters_of_sonnet_give_what_its_example_gives(blocks, tmp_path):
    original = Sonnet(blocks=blocks)
    numpy.savez(tmp_path / "sonnet.npz", **original.variables())
    ours, images = import_model(tmp_path / "sonnet.npz", size=(24, 16)), draw(2, 3, 24, 16)
    torch.testing.assert_close(ours.encode_latents(images)[0], original.latents(images), **CLOSE)
    codes = original.codes(images)
    assert all(map(torch.equal, ours.encode(images), codes))
    torch.testing.assert_close(ours.decode(codes), original.pictures(codes), **CLOSE)


@torch.no_grad()
def test_the_two_files_of_dalle_give_what_its_modules_give(tmp_path, monkeypatch):
    original, images = make(DallE), draw(2, 3, 16, 24)
    original.encoder.blocks.output.conv.b -= original.logits(images).mean((0, 2, 3))  # so that there are many codes
    for part in ("encoder", "decoder"):
        torch.save(getattr(original, part), tmp_path / f"{part}.pkl")
    monkeypatch.delattr("foreign_vqvaes.DallEPart")  # whoever loads it has no such class
    ours = load(tmp_path)
    logits = ours.quantizer.to_logits(ours.encode_latents(images)[0].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(logits, original.logits(images), **CLOSE)
    codes = original.codes(images)
    assert all(map(torch.equal, ours.encode(images), codes)) and len(codes[0].unique()) > 4
    torch.testing.assert_close(ours.decode(codes), original.pictures(codes), **CLOSE)


def test_moving_averages_of_a_codebook_come_along(tmp_path):
    original = make(Zalando)
    original._vq_vae._ema_cluster_size.copy_(torch.arange(20.0))
    ours = import_model(saved(tmp_path, original.state_dict()))
    assert torch.equal(ours.quantizer.running_hits, torch.arange(20.0)) and ours.config["quantizer"] == "ema"


@pytest.fixture(scope="module")
def vq_model():
    """A `VQModel` of diffusers with attention at some sizes."""
    models = pytest.importorskip("diffusers.models.autoencoders.vq_model")

    def build(**options):
        sizes = {"block_out_channels": (32, 64, 96), "layers_per_block": 1, "norm_num_groups": 16, "sample_size": 24}
        kinds = {
            "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        }
        return make(models.VQModel, **{**sizes, **kinds, "latent_channels": 5, "num_vq_embeddings": 20, **options})

    return build


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mid_block_add_attention": False, "vq_embed_dim": 7, "in_channels": 1,
                                          "out_channels": 1}], ids=str)  # fmt: skip
@torch.no_grad()
def test_a_folder_of_diffusers_gives_what_diffusers_gives(options, vq_model, tmp_path):
    original = vq_model(**options)
    original.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.signal.size == (24, 24) and ours.provenance["imported_from"].endswith("(diffusers)")
    images = draw(2, options.get("in_channels", 3), 24, 24)
    latents = original.encode(images).latents
    torch.testing.assert_close(ours.encode_latents(images)[0], latents, **CLOSE)
    numbers = original.quantize(latents)[2][2].view(2, 6, 6)
    assert torch.equal(ours.encode(images)[0], numbers)
    torch.testing.assert_close(ours.reconstruct(images), original.decode(latents).sample, **CLOSE)


# Files that nobody should trust.


class Attack:
    """Pickled, it asks for a command to be run."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Claim:
    """Pickled, it is a tensor of a million numbers over four."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.zeros(4).storage(), 0, (10**6,), (1,), False, OrderedDict())


def attacks(trace):
    return {
        "os.system": Attack(os.system, f"touch {trace}"),
        "builtins.eval": Attack(eval, f"open({str(trace)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, "a", "upper"),
        "Path.write_text": Attack(Path.write_text, trace, "x"),
        "torch.load": Attack(torch.load, str(trace)),
        "import": Attack(torch._utils._import_dotted_name, "os.system"),
    }


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("as_zip", [True, False])
def test_nothing_in_a_pickle_is_run(name, as_zip, tmp_path):
    trace = tmp_path / "trace"
    content = {"state_dict": make(Taming).state_dict(), "callbacks": attacks(trace)[name]}
    torch.save(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=as_zip)
    try:
        import_model(tmp_path / "bad.ckpt")
    except InputError as error:
        assert "bad.ckpt" in str(error) and "\n" not in str(error)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.getattr"])
def test_a_pickle_that_would_run_something_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"is refused \(it holds code: it would run '(posix|builtins)\..*nothing was"):
        import_model(saved(tmp_path, {"a": torch.zeros(1), "b": attacks(tmp_path / "trace")[name]}))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(attacks(tmp_path / "trace")[name]))
    with pytest.raises(InputError, match=r"plain\.pkl is (refused|damaged)"):
        load(tmp_path / "plain.pkl")
    assert not (tmp_path / "trace").exists()


def test_what_a_trainer_left_in_a_checkpoint_is_passed_over(tmp_path, monkeypatch):
    original = make(Taming)
    trainer = type("ModelCheckpoint", (), {"__module__": "tests_of_a_trainer", "__qualname__": "ModelCheckpoint"})
    module = types.ModuleType("tests_of_a_trainer")
    module.ModelCheckpoint = trainer
    monkeypatch.setitem(sys.modules, "tests_of_a_trainer", module)
    left = trainer()
    left.best = [Path("last.ckpt"), {trainer: {1}}]
    path = saved(tmp_path, {"state_dict": original.state_dict(), "callbacks": {trainer: left}})
    monkeypatch.delitem(sys.modules, "tests_of_a_trainer")
    assert len(import_model(path, size=16).state_dict()) > 50


def test_a_module_that_was_saved_as_a_whole_is_read_without_its_class(tmp_path, monkeypatch):
    original = make(Taming)
    path = saved(tmp_path, original, "module.pkl")
    monkeypatch.delattr("foreign_vqgans.Taming")
    images = draw(1, 3, 16, 16)
    torch.testing.assert_close(import_model(path, size=16).encode_latents(images)[0], original.latents(images), **CLOSE)


def spoil(path, content):
    path.write_bytes(content)
    return path


BAD = {
    "cut": (lambda folder, whole: spoil(folder / "a.ckpt", whole[: len(whole) // 2]), "is damaged or cut off"),
    "empty": (lambda folder, whole: spoil(folder / "a.ckpt", b""), "is no checkpoint"),
    "text": (lambda folder, whole: spoil(folder / "a.ckpt", b"hello"), "is no checkpoint"),
    "cut-safetensors": (lambda folder, whole: spoil(folder / "a.safetensors", b"\x08" + bytes(20)), "is damaged"),
    "missing": (lambda folder, whole: folder / "none.ckpt", "no file or folder"),
    "folder": (lambda folder, whole: folder, "is a folder that holds neither config.json and"),
    "unknown": (lambda folder, whole: saved(folder, {"layer.weight": torch.zeros(2)}),
                r"holds 1 tensors, such as layer.weight, not encoder\.down\.0.*\(taming\).*\(llamagen\)"),
    "no-weights": (lambda folder, whole: saved(folder, {"epoch": 3}), "holds no weights"),
    "nan": (lambda folder, whole: saved(folder, {"a.b": torch.full((1,), torch.nan)}), "a.b holds nan"),
    "program": (lambda folder, whole: script(folder / "a.pt"), "is a program of TorchScript"),
    "claim": (lambda folder, whole: saved(folder, {"a": Claim()}), "is damaged, cut off, or no checkpoint"),
    "view": (lambda folder, whole: saved(folder, {"a": torch.zeros(1).expand(10**6, 10**8)}), "would take"),
}  # fmt: skip


def script(path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(case, tmp_path):
    make_bad, reason = BAD[case]
    whole = saved(tmp_path, make(Taming).state_dict(), "whole.ckpt").read_bytes()
    with pytest.raises(InputError, match=reason) as found:
        import_model(make_bad(tmp_path, whole))
    assert "\n" not in str(found.value) and len(str(found.value)) < 1000


def change(**changes):
    weights = make(Taming).state_dict()
    for name, shape in changes.items():
        name = name.replace("__", ".")
        if shape is not None:
            weights[name] = torch.zeros(shape)
        else:
            del weights[name]
    return weights


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (change(decoder__conv_out__bias=(5,)), r"decoder\.decoder\.conv_out\.bias has the shape \[5\], but"),
        (change(decoder__conv_out__bias=None), r"lacks what becomes decoder\.decoder\.conv_out\.bias"),
        (change(decoder__more__weight=(5,)), r"holds decoder\.decoder\.more\.weight, too"),
        (change(conv__in=(1,), encoder__conv_out__weight=None), "holds no encoder.conv_out.weight, which such a"),
        (change(quant_conv__weight=(6, 8, 5, 5)), "this version has no such model"),
        (change(quantize__embedding__weight=(3,)), "has 1 axes, not 2"),
        (change(encoder__conv_out__weight=()), "it is another variant of this model .len.. of a 0-d tensor"),
        (change(encoder__conv_in__weight=(32, 4, 3, 3)), "this version has no such model"),
    ],
)
def test_other_variants_of_a_known_model_are_refused_by_what_differs(weights, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        import_model(saved(tmp_path, weights), size=16)


def test_the_source_and_the_size_can_be_told(tmp_path):
    path = saved(tmp_path, make(Taming).state_dict())
    assert import_model(path).signal.size == (256, 256)
    assert import_model(path, source="taming", size=(8, 12)).signal.size == (8, 12)
    with pytest.raises(InputError, match=r"is no checkpoint known here: .* not encoder\.conv_blocks"):
        import_model(path, source="llamagen")
    with pytest.raises(InputError, match="`source` 'vqgan': choose one of taming, "):
        import_model(path, source="vqgan")
    with pytest.raises(InputError, match="`size` 1 2 3: give one side"):
        import_model(path, size=(1, 2, 3))
    with pytest.raises(InputError, match="side 1, but its scales end with 16"):
        import_model(saved(tmp_path, make(VAR).state_dict()), size=2)


def test_averaged_weights_come_before_the_others(tmp_path):
    last, averaged = make(LlamaGen, 1), make(LlamaGen, 2)
    path = saved(tmp_path, {"model": last.state_dict(), "ema": averaged.state_dict()})
    images = draw(1, 3, 16, 16)
    torch.testing.assert_close(import_model(path).encode_latents(images)[0], averaged.latents(images), **CLOSE)


def test_an_imported_folder_is_a_model_like_any_other(tmp_path):
    weights = make(Taming).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    settings = ImportModel(from_=str(tmp_path / "a.safetensors"), output=str(tmp_path / "t"), size=(16, 16))
    found = import_into(settings)
    assert found["imported_from"].endswith("(taming)") and import_into(settings) == {}  # finished
    again, direct = load(tmp_path / "t"), import_model(tmp_path / "a.safetensors", size=16)
    assert again.fingerprint() == direct.fingerprint() and again.provenance["sha256"].keys() == {"a.safetensors"}
    assert "taming" in (tmp_path / "t" / "README.md").read_text()
    (tmp_path / "bad.ckpt").write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        import_into(ImportModel(from_=str(tmp_path / "bad.ckpt"), output=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_every_source_says_what_it_is():
    for name in SOURCES:
        source = find_source(name)
        assert source.keys and source.about and len(source.size) == 2
