"""Compression: codes and pixels go into a file and come back, whatever the batches, or one line says why not."""

import copy
import tarfile
import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image
from small_priors import CONDITIONED, NAMES, build_prior, random_codes

from codegrid import VQVAE, GatedPixelCNN, InputError, Signal, TwoStagePipeline, compress, decompress, load
from codegrid.codes import Condition, Grid
from codegrid.native.build import load_library
from codegrid.pipelines.compression.packing import unpack
from codegrid.pipelines.compression.residuals import PixelCoder, fit_coefficients
from codegrid.same_bits import SameBits
from codegrid.stage2_prior.coding.coding import choose_coding, code_chunk
from codegrid.stage2_prior.coding.frequencies import frequencies
from codegrid.stage2_prior.coding.streams import Reader, Writer
from codegrid.stage2_prior.likelihood import measure
from codegrid.stage2_prior.native.steps import NativeSteps
from codegrid.stage2_prior.native.structures import SAME_BITS
from codegrid.tensors import sha256

PYRAMID = [Grid((side, side), 8) for side in (1, 2, 3)]
LAYOUTS = {"next-scale": PYRAMID}
FLAGS = [("-march=native", "-mno-avx512f"), ("-march=native", "-mno-avx"), ("-O0",)]


def written(priors, given, codes, backend, batch_size=256):
    stream = Writer()
    code_chunk(priors, given, len(codes[-1]), stream, codes, backend, batch_size)
    return stream.content()


@pytest.fixture(scope="module")
def prior():
    return build_prior("pixelcnn", sizes=(30, 7), num_classes=3, decided=8.0).float()


@pytest.fixture(scope="module")
def pipeline(small_run):
    return TwoStagePipeline.from_pretrained(small_run)


@pytest.fixture(scope="module")
def bars():
    images, labels = draw_bars(40, seed=5)
    return torch.from_numpy(images).permute(0, 3, 1, 2), labels.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_sequential_prior_codes_in_about_its_own_bits(name):
    prior = build_prior(name, num_classes=3, layout=LAYOUTS.get(name, ()), decided=2.0).float()
    codes, given = random_codes(prior, 40), Condition(torch.arange(40) % 3)
    backend = choose_coding([prior])
    content = written([prior], given, codes, backend)
    again = code_chunk([prior], given, 40, Reader(content), backend=backend)
    assert all(map(torch.equal, again, codes))
    bits = 40 * measure(prior, [(codes, given)]).per_sample
    assert bits - 32 < 8 * len(content) < 1.01 * bits + 64


@pytest.mark.parametrize("name", CONDITIONED)
def test_priors_of_several_grids_code_them_coarse_to_fine(name):
    coarse = build_prior("transformer", layout=PYRAMID[1:2]).float()
    fine = build_prior(name, layout=PYRAMID[2:], grids=[1], given_grids=[0], given_layout=PYRAMID[1:2]).float()
    codes = (*random_codes(coarse, 5), *random_codes(fine, 5))
    content = written([coarse, fine], Condition(), codes, "torch")
    assert all(map(torch.equal, code_chunk([coarse, fine], Condition(), 5, Reader(content), backend="torch"), codes))


def test_a_prior_given_coarser_grids_has_the_same_bits_in_any_batch():
    fine = build_prior("pixelcnn", layout=PYRAMID[2:], grids=[1], given_grids=[0], given_layout=PYRAMID[1:2]).float()
    codes, given = random_codes(fine, 9), Condition(codes=(torch.randint(0, 8, (9, 2, 2)),))
    content = written([fine], given, (*given.codes, *codes), "native", 9)
    assert content == written([fine], given, (*given.codes, *codes), "native", 2)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_what_was_written_in_one_batch_is_read_in_others(prior, batch_size):
    codes, given = random_codes(prior, 10), Condition(torch.arange(10) % 3)
    content = written([prior], given, codes, "native")
    again = code_chunk([prior], given, 10, Reader(content), backend="native", batch_size=batch_size)
    assert all(map(torch.equal, again, codes))


@pytest.mark.parametrize("flags", FLAGS)
def test_the_logits_that_code_have_the_same_bits_on_every_processor(prior, flags):
    def logits_of(*flags):
        library = load_library(SAME_BITS, *flags)
        steps = NativeSteps(prior.network, prior.layout, 7, torch.arange(7) % 3, library=library)
        for number, (grid, _) in enumerate(steps.order):
            yield steps.next_logits().clone()
            steps.append(torch.full((7, 1), number % prior.layout[grid].num_embeddings))

    with torch.no_grad():
        assert all(map(torch.equal, logits_of(*flags), logits_of("-march=native")))


def test_streams_are_those_of_version_1_of_the_format():
    options = {"grids": [1], "given_grids": [0], "given_layout": PYRAMID[1:2]}
    prior = build_prior("pixelcnn", layout=PYRAMID[2:], **options).float()
    with torch.no_grad():
        for parameter in prior.parameters():
            numbers = torch.arange(parameter.numel()).view_as(parameter)
            parameter.copy_((numbers * 7919 % 257 - 128) / 512)
    codes, coarse = torch.arange(27).view(3, 3, 3) % 8, torch.arange(12).view(3, 2, 2) % 8
    content = written([prior], Condition(codes=(coarse,)), (coarse, codes), "native")
    digest = "a9065e5c59dba792acfd3b6cfa7b65396a843797a19ba8f136143788f41ff471"
    assert sha256(content) == digest, "raise VERSION in container.py: older files can no longer be read"


def test_sums_of_a_layer_do_not_depend_on_their_order():
    torch.manual_seed(0)
    order = torch.randperm(24)
    for kind in (torch.nn.Conv2d, torch.nn.ConvTranspose2d):
        layer, x = kind(24, 24, 3, padding=1), torch.randn(4, 24, 6, 5)
        other = kind(24, 24, 3, padding=1)
        other.bias.data = layer.bias.data
        inputs = 1 if kind is torch.nn.Conv2d else 0
        other.weight.data = layer.weight.data.index_select(inputs, order)
        with torch.no_grad(), SameBits():
            exact = layer(x)
            assert torch.equal(exact, other(x[:, order])) and torch.equal(exact[1:2], layer(x[1:2]))
        assert torch.allclose(exact, layer(x), atol=1e-5)


def test_frequencies_are_those_of_the_softmax():
    logits = 5 * torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    found = frequencies(logits.numpy())
    assert (found == np.floor(found)).all() and (found.sum(1) <= 2**23 + 1).all()
    assert np.abs(found / 2**23 - logits.double().softmax(1).numpy()).max() < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_whatever_was_predicted(channels):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, channels, 5, 7), dtype=np.uint8)
    images[:3] //= 128  # extremes, and flat parts
    predicted = random.integers(0, 256, images.shape, dtype=np.uint8)
    coefficients, stream = fit_coefficients(images, predicted), Writer()
    PixelCoder(channels, coefficients).code(stream, predicted, images)
    again = PixelCoder(channels, coefficients).code(Reader(stream.content()), predicted)
    assert (again == images).all()


def test_of_a_large_picture_only_some_pixels_are_fitted():
    image = np.zeros((1, 1, 1200, 1200), np.uint8)
    tracemalloc.start()
    try:
        fit_coefficients(image, image)
        assert tracemalloc.get_traced_memory()[1] < 200 * image.size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_images_come_back_bit_for_bit_with_their_labels_and_names(pipeline, bars, backend):
    images, labels = bars
    names = list(map(str, range(40)))
    packed = compress(pipeline, images, labels, names, lossless=True, backend=backend, batch_size=16)
    again = decompress(pipeline, packed)
    assert torch.equal(torch.stack(list(again.images)), images)
    assert again.labels.tolist() == labels and again.names == names


@pytest.mark.parametrize("backend", ["native", "torch", "plain"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_compressed_beside_a_gpu_come_back(pipeline, bars, backend):
    models = [copy.deepcopy(model).to("cuda") for model in (pipeline.tokenizer, *pipeline.priors)]
    beside = TwoStagePipeline(models[0], models[1])
    packed = compress(beside, bars[0], lossless=True, backend=backend, batch_size=16)
    for reader in (beside, pipeline) if backend == "native" else (beside,):
        assert torch.equal(torch.stack(list(decompress(reader, packed).images)), bars[0])
    assert {model.device.type for model in models} == {"cuda"}, "where they were"


def test_native_code_is_chosen_wherever_a_prior_is(prior):
    assert choose_coding([copy.deepcopy(prior).to("meta")]) == "native"


def test_without_what_the_tokenizer_misses_images_are_its_reconstructions(pipeline, bars):
    images, labels = bars
    packed = compress(pipeline, images, labels)
    shown = torch.stack(list(decompress(pipeline, packed, batch_size=7).images))
    expected = pipeline.reconstruct(images / 127.5 - 1)
    assert (shown / 127.5 - 1 - expected).abs().max() < 0.01
    assert len(packed) < len(compress(pipeline, images, labels, lossless=True))


def test_every_damage_to_a_file_is_told_in_one_line(pipeline, bars):
    packed = compress(pipeline, bars[0][:4], lossless=True)
    flipped = (packed[:i] + bytes([packed[i] ^ 16]) + packed[i + 1 :] for i in range(0, len(packed), 7))
    cut = (packed[:length] for length in (0, 8, 9, len(packed) // 2, len(packed) - 1))
    for damaged in chain(cut, [packed + b"\0"], flipped):
        with pytest.raises(InputError, match=r"not a file of|has version|is damaged or cut"):
            decompress(pipeline, damaged)


def test_a_file_of_another_version_model_or_machine_is_refused(pipeline, bars, monkeypatch):
    images, labels = bars
    packed = compress(pipeline, images, labels, backend="torch", batch_size=8)
    with pytest.raises(InputError, match=r"version 2 of the format, and this is version 1"):
        decompress(pipeline, packed[:8] + b"\2" + packed[9:])
    with pytest.raises(InputError, match=r"`batch_size` 4: .* in batches of 8"):
        decompress(pipeline, packed, batch_size=4)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    with pytest.raises(InputError, match=r"and this is .*ABACUS"):
        decompress(pipeline, packed)
    other = TwoStagePipeline(pipeline.tokenizer, load(pipeline.priors[0].loaded_from))
    with torch.no_grad():
        next(other.priors[0].parameters()).add_(1)
    with pytest.raises(InputError, match=r"another prior \(the fingerprints differ\)"):
        decompress(other, packed)


def test_predicted_pixels_that_differ_are_refused(pipeline, bars, monkeypatch):
    packed = compress(pipeline, bars[0], lossless=True)
    decode = type(pipeline.tokenizer).decode
    monkeypatch.setattr(type(pipeline.tokenizer), "decode", lambda *args, **given: decode(*args, **given) + 0.02)
    with pytest.raises(InputError, match="the predicted pixels are not those that went in"):
        decompress(pipeline, packed)


def test_pixels_are_predicted_by_convolutions_that_give_the_same_bits_each_time(pipeline, bars, monkeypatch):
    """As a GPU's fastest do not."""
    decode, seen = type(pipeline.tokenizer).decode, []

    def look(*arguments, **given):
        seen.append(torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32)
        return decode(*arguments, **given)

    monkeypatch.setattr(type(pipeline.tokenizer), "decode", look)
    decompress(pipeline, compress(pipeline, bars[0], lossless=True))
    assert seen == [True, True] and not torch.backends.cudnn.deterministic


def test_pixels_that_depend_on_the_machine_are_decompressed_on_such_a_machine_alone(pipeline, monkeypatch):
    torch.manual_seed(0)
    tokenizer = VQVAE(Signal("image", 1, (12, 20)), network="resnet", hidden_channels=32, num_embeddings=16).eval()
    prior = GatedPixelCNN(tokenizer.layout, channels=8, num_layers=2).eval()
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint()}
    models, images = TwoStagePipeline(tokenizer, prior), torch.randint(0, 256, (3, 1, 12, 20), dtype=torch.uint8)
    packed = compress(models, images, lossless=True)
    assert torch.equal(torch.stack(list(decompress(models, packed).images)), images)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    with pytest.raises(InputError, match=r"and this is .*ABACUS.*: the results would differ"):
        decompress(models, packed)
    assert len(unpack(packed, tokenizer, [prior], with_images=False).codes[0]) == 3  # of the same bits everywhere


def test_what_native_code_compressed_needs_it_again(pipeline, bars, monkeypatch):
    packed = compress(pipeline, bars[0])
    monkeypatch.setattr(GatedPixelCNN, "why_not_same", lambda prior: "native code needs a C++ compiler: install one")
    with pytest.raises(InputError, match=r"compressed by `backend` native: .* compiler: install one$"):
        decompress(pipeline, packed)
    assert len(decompress(pipeline, compress(pipeline, bars[0])).images) == 40  # without it, by torch


def test_labels_and_names_that_do_not_fit_are_refused(pipeline, bars):
    with pytest.raises(InputError, match="`labels` 2: there are classes 0 to 1"):
        compress(pipeline, bars[0][:2], [0, 2])
    with pytest.raises(InputError, match="`labels`: 2 labels for 40 images"):
        compress(pipeline, bars[0], [0, 1])
    with pytest.raises(InputError, match="`images`: there are none"):
        compress(pipeline, bars[0][:0])
    with pytest.raises(InputError, match="`backend` 'compiled': choose one of auto, native, torch, plain"):
        compress(pipeline, bars[0], backend="compiled")
    with pytest.raises(InputError, match="give a text for each"):
        compress(pipeline, bars[0][:2], names=[Path("a"), Path("b")])
    with pytest.raises(InputError, match="`names`: 1 for 40 images"):
        compress(pipeline, bars[0], names=["a"])


def test_a_prior_without_steps_cannot_compress():
    prior = build_prior("maskgit").float()
    with pytest.raises(InputError, match="a MaskGIT cannot compress codes"):
        choose_coding([prior])


@pytest.fixture
def pictures(tmp_path):
    """Grey and coloured pictures of several sizes and formats."""
    random, folder = np.random.default_rng(0), tmp_path / "pictures"
    for name, shape in {"a/x.png": (12, 20), "a/x.bmp": (12, 20), "b/ü y.png": (9, 31, 3), "b/z.png": (12, 20)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def test_a_folder_of_pictures_comes_back_with_names_and_sizes(small_run, pictures, tmp_path, run_script):
    packed, out = tmp_path / "packed.cgz", tmp_path / "out"
    done = run_script("compress", "--run", small_run, "--dataset", pictures, "--lossless", "--output", packed)
    assert done.code == 0 and "4 images in" in done.out
    assert run_script("decompress", "--run", small_run, "--file", packed, "--output", out).code == 0
    found = {path.relative_to(out / "pictures").as_posix(): path for path in out.rglob("*.png")}
    assert set(found) == {"a/x.png.png", "a/x.bmp.png", "b/ü y.png", "b/z.png"}
    for name, path in found.items():
        original = pictures / (name if (pictures / name).exists() else name.removesuffix(".png"))
        assert (np.array(Image.open(path)) == np.array(Image.open(original))).all()


def test_pictures_of_a_tar_file_keep_their_colours_and_sizes_too(small_run, pictures, tmp_path, run_script):
    packed, out, shard = tmp_path / "packed.cgz", tmp_path / "out", tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for path in sorted((pictures / "b").iterdir()):
            tar.add(path, path.name)
    flags = ("compress", "--run", small_run, "--dataset", shard, "--lossless", "--output", packed)
    assert run_script(*flags).code == 0
    assert run_script("decompress", "--run", small_run, "--file", packed, "--output", out).code == 0
    for path in (pictures / "b").iterdir():
        assert (np.array(Image.open(out / "pictures" / "shard" / path.name)) == np.array(Image.open(path))).all()


def test_codes_come_back_as_a_code_dataset(small_run, tmp_path, run_script):
    packed, out, codes = tmp_path / "packed.cgz", tmp_path / "out", small_run / "codes"
    assert run_script("compress", "--run", small_run, "--codes", codes, "--output", packed).code == 0
    flags = ("--run", small_run, "--file", packed, "--output", out)
    assert run_script("decompress", *flags, "--format", "codes").code == 0
    from codegrid import CodeDataset

    before, after = CodeDataset(codes), CodeDataset(out)
    everything = range(len(before))
    assert torch.equal(before.batch(everything).codes[0], after.batch(everything).codes[0])
    assert (before.labels == after.labels).all()
    assert "already holds files" in run_script("decompress", *flags).err
    assert run_script("decompress", *flags, "--overwrite").code == 0 and (out / "pictures").is_dir()


def test_nothing_is_left_of_a_file_that_is_refused(small_run, tmp_path, run_script):
    packed, out = tmp_path / "packed.cgz", tmp_path / "out"
    assert run_script("compress", "--run", small_run, "--output", packed).code == 0
    assert "already there" in run_script("compress", "--run", small_run, "--output", packed).err
    packed.write_bytes(packed.read_bytes()[:-5])
    done = run_script("decompress", "--run", small_run, "--file", packed, "--output", out)
    assert done.code == 2 and "damaged or cut" in done.err and done.err.count("\n") == 1
    assert not out.exists() and not (tmp_path / ".partial").exists()


def test_transparent_pictures_are_not_said_to_come_back(small_run, pictures, tmp_path, run_script):
    Image.fromarray(np.zeros((12, 20, 4), np.uint8)).save(pictures / "a" / "clear.png")
    packed = tmp_path / "packed.cgz"
    done = run_script("compress", "--run", small_run, "--dataset", pictures, "--lossless", "--output", packed)
    assert done.code == 2 and "save it as an 8-bit" in done.err and not packed.exists()


def test_only_a_compressed_file_is_overwritten_and_nothing_beside_it_touched(small_run, pictures, tmp_path, run_script):
    flags = ("compress", "--run", small_run, "--dataset", pictures, "--overwrite", "--output")
    done = run_script(*flags, source := pictures / "a" / "x.png")
    assert done.code == 2 and "`--overwrite` replaces no other" in done.err.replace("--overwrite", "`--overwrite`", 1)
    assert Image.open(source).size == (20, 12)
    (tmp_path / ".partial").mkdir()
    (tmp_path / "link.cgz").symlink_to(tmp_path / "packed.cgz")
    for _ in range(2):
        assert run_script(*flags, tmp_path / "link.cgz").code == 0
    assert (tmp_path / ".partial").is_dir() and (tmp_path / "link.cgz").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {".partial", "link.cgz", "packed.cgz", "pictures"}


def test_arrays_of_floats_are_not_said_to_come_back(small_run, tmp_path, run_script):
    np.savez(tmp_path / "floats.npz", np.random.default_rng(0).random((4, 12, 20), np.float32))
    flags = ("--run", small_run, "--dataset", tmp_path / "floats.npz", "--output", tmp_path / "a.cgz")
    done = run_script("compress", *flags, "--lossless")
    assert done.code == 2 and "holds floats, which would be rounded" in done.err
    assert run_script("compress", *flags).code == 0


def test_codes_of_classes_that_the_prior_does_not_know_lose_their_labels(small_run, pictures, tmp_path, run_script):
    (pictures / "b").rename(pictures / "0")  # the prior knows this one, and not a
    packed, out = tmp_path / "packed.cgz", tmp_path / "out"
    assert run_script("compress", "--run", small_run, "--dataset", pictures, "--output", packed).code == 0
    done = run_script("decompress", "--run", small_run, "--file", packed, "--output", out, "--format", "codes")
    assert done.code == 0 and "2 images are of no class that the prior learnt" in done.out


def test_every_picture_gets_a_name_of_its_own_that_every_disk_takes():
    from codegrid.pipelines.compression.decompressing import picture_names
    from codegrid.pipelines.compression.packing import Content

    names = ["a/X.PNG", "a/x.png", "a/y.png", "k/a.png/1.png", "k/a.bmp", "日" * 83 + ".png", "日" * 83 + ".bmp"]
    found = picture_names(Content((torch.zeros(7, 1, 1),), names=names), [])
    assert found[:5] == ["a/X.PNG.png", "a/x.png-1.png", "a/y.png", "k/a.png/1.png", "k/a.bmp.png"]
    assert len(set(found)) == 7 and max(len(part.encode()) for name in found for part in name.split("/")) < 255


def test_untrusted_names_lead_nowhere_else():
    from codegrid.pipelines.compression.decompressing import picture_names
    from codegrid.pipelines.compression.packing import Content

    names = ["../../x.png", "/etc/y", "C:\\z\\..\\v.png", "", "a/b\n.png", "caf\udce9.png"]
    found = picture_names(Content((torch.zeros(6, 1, 1),), names=names), [])
    assert found == ["x.png", "etc/y.png", "C__z_.._v.png", "picture.png", "a/b_.png", "caf_.png"]
    assert not any(".." in Path(name).parts for name in found)
