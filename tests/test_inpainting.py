"""In-painting: masks over pixels, the codes that they keep, and pictures whose hidden pixels nothing can know.

Shapes: p pictures, c channels, H W image.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_any_order import MaskedPrior
from toy_pyramid import make_pyramid

from codegrid import VQVAE, HierarchicalVQVAE, InputError, Signal, TwoStagePipeline
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_float
from codegrid.pipelines.generation.kept_part import Part, check_keeps, describe_kept, keep_pixels
from codegrid.pipelines.generation.masks import read_masks
from codegrid.pipelines.generation.paste import weigh
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.sample import Sample
from codegrid.registry import TABLES

SIZE, BOX = (16, 24), (slice(4, 9), slice(10, 21))
SMALL = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 8}
TOKENIZERS = {
    "flat": lambda signal: VQVAE(signal, downsampling=4, **SMALL),
    "two codes a site": lambda signal: VQVAE(signal, quantizer="residual", num_quantizers=2, **SMALL),
    "scales": lambda signal: VQVAE(signal, quantizer="multiscale", downsampling=4, **SMALL),
    "a hierarchy": lambda signal: HierarchicalVQVAE(signal, levels=(2, 2), num_residual_blocks=1, **SMALL),
    "attention": lambda signal: VQVAE(signal, network="resnet", num_residual_blocks=1, **SMALL),
}


def make_pipeline(name="flat"):
    """Untrained models: a tokenizer, and a prior that keeps any of its codes."""
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[name](Signal("image", 1, SIZE)).eval()
    for weight in tokenizer.parameters():
        weight.data *= 3  # so that codes differ
    prior = MaskedPrior(tokenizer.layout, num_classes=2).eval()
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": ["0", "1"]}
    return TwoStagePipeline(tokenizer, prior)


@pytest.fixture(scope="module", params=TOKENIZERS)
def pipeline(request):
    return make_pipeline(request.param)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a flat tokenizer and its prior, and their pipeline."""
    folder, made = tmp_path_factory.mktemp("run"), make_pipeline()
    made.save_pretrained(folder)
    return folder, made


def draw_images(count, size=SIZE, seed=0):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def outside(box=BOX, size=SIZE):
    known = torch.ones(size, dtype=torch.bool)
    known[box] = False
    return known


def save(path, pixels):
    """Save (H, W), numbers from 0 to 255, as a picture."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def save_pictures(folder, count=3, size=SIZE, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size))
    return [save(folder / f"{number}.png", each) for number, each in enumerate(pixels)]


def equal(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


# What is hidden.


def test_hidden_pixels_change_no_completion(pipeline):
    images, known = draw_images(2), outside()
    other = torch.where(known, images, draw_images(2, seed=1))
    one, two = (pipeline.complete(each, known, 2, labels=[1], seed=0, paste=True) for each in (images, other))
    assert not equal(pipeline.encode(images), pipeline.encode(other))
    assert equal(one.codes, two.codes) and torch.equal(one.images, two.images)
    part = keep_pixels(pipeline.tokenizer, known[None])
    made = [grid.repeat_interleave(2, 0) for grid in pipeline.encode(part.of_known(images))]
    for kept, drawn, given in zip(pipeline.tokenizer.kept_sites(known), one.codes, made, strict=True):
        assert torch.equal(drawn[:, kept], given[:, kept])
    assert not equal(one.codes, made)


def test_a_picture_goes_on_behind_what_is_hidden():
    image, known = draw_images(1), outside((slice(3, 16), slice(10, 13)))
    part = Part((), known[None])
    filled, shown = part.of_known(image)[0, 0], part.hide(image)[0, 0]
    assert torch.equal(filled[known], image[0, 0][known]) and torch.equal(shown[known], image[0, 0][known])
    assert not shown[~known].any()
    assert torch.equal(filled[4:, 10], image[0, 0, 4:, 9]) and torch.equal(filled[4:, 12], image[0, 0, 4:, 13])
    lower = Part((), outside((slice(8, 16), slice(0, 24)))[None]).of_known(image)[0, 0]
    assert torch.equal(lower[8:], image[0, 0, 7].expand(8, -1))


@pytest.mark.parametrize("name,sides", [("flat", [4]), ("two codes a site", [4, 4]), ("a hierarchy", [4, 2])])
def test_codes_are_kept_whose_own_pixels_are_all_known(name, sides):
    known = outside()
    for kept, side in zip(make_pipeline(name).tokenizer.kept_sites(known), sides, strict=True):
        assert torch.equal(kept, known.unflatten(1, (-1, side)).unflatten(0, (-1, side)).all(3).all(1))


def test_each_picture_may_have_a_mask_of_its_own():
    pipeline, images = make_pipeline(), draw_images(2)
    known = torch.stack([outside(), outside((slice(8, 16), slice(0, 24)))])
    both = pipeline.complete(images, known, seed=3).codes
    assert torch.equal(both[0][:1], pipeline.complete(images[:1], known[0], seed=3).codes[0])
    assert torch.equal(both[0][1:, :2], pipeline.encode(Part((), known[1:]).of_known(images[1:]))[0][:, :2])
    sites = torch.rand(2, *pipeline.layout[0].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(pipeline.complete(images, sites, seed=3).codes[0][sites], pipeline.encode(images)[0][sites])


def test_a_coarse_grid_of_which_nothing_can_be_kept_is_drawn():
    pipeline, known = make_pipeline("scales"), outside()
    part = keep_pixels(pipeline.tokenizer, known[None])
    assert describe_kept(pipeline.layout, part.masks).startswith("0 of 1")
    images = draw_images(3)
    drawn = [pipeline.complete(images, known, seed=seed).codes[0] for seed in range(3)]
    assert len(torch.cat(drawn).unique()) > 1


@pytest.mark.parametrize(
    "keep,reason",
    [
        (
            torch.zeros(SIZE, dtype=torch.bool),
            "`keep`: no code is kept, as each has unknown pixels of its own: hide less",
        ),
        (
            torch.zeros(2, *SIZE, dtype=torch.bool).index_fill(0, torch.tensor(0), True),
            "`keep`: no code of picture 1 is kept",
        ),
        (torch.zeros(4, 6, dtype=torch.bool), "`keep`: no code is kept, as the mask marks none"),
        (torch.ones(3, *SIZE, dtype=torch.bool), "`keep`: 3 masks for 2 pictures"),
        (torch.ones(7, 24, dtype=torch.bool), r"`keep`: the mask has the shape \(7, 24\): give one of the grids"),
    ],
)
def test_a_mask_that_keeps_nothing_or_does_not_fit_is_refused(keep, reason):
    with pytest.raises(InputError, match=reason):
        make_pipeline().complete(draw_images(2), keep)


# What priors can keep.


def test_a_prior_that_draws_in_order_keeps_the_upper_part_and_names_who_keeps_more():
    pipeline, images = make_pyramid(), draw_images(2, (12, 20))
    known = outside((slice(8, 12), slice(0, 20)), (12, 20))
    other = torch.where(known, images, draw_images(2, (12, 20), seed=1))
    one, two = (pipeline.complete(each, known, labels=[0], seed=0).codes for each in (images, other))
    assert equal(one, two)
    able = {name: TABLES["prior"][name].keeps for name in TABLES["prior"]}
    with pytest.raises(InputError, match="keeps site 14 of grid 0 in raster order, but not all before it") as told:
        pipeline.complete(images, outside((slice(0, 4), slice(0, 4)), (12, 20)))
    *_, wholly, roughly = str(told.value).split("; priors that keep any ")
    for named, kind in ((wholly.removeprefix("codes: "), "any"), (roughly.removeprefix("roughly: "), "roughly")):
        assert named.split(", ") == [name for name, keeps in able.items() if keeps == kind]


@pytest.mark.parametrize("keeps,refused", [("first", True), ("none", True), ("any", False), ("roughly", False)])
def test_every_kind_of_prior_says_whether_it_can_keep_a_part(keeps, refused):
    pipeline = make_pipeline("a hierarchy")
    prior, masks = pipeline.priors[0], keep_pixels(pipeline.tokenizer, outside()[None]).masks
    prior.keeps = keeps
    upper = tuple(torch.ones_like(mask) for mask in masks[:1]), tuple(mask & False for mask in masks[1:])
    if refused:
        with pytest.raises(InputError, match=r"priors that keep any codes: .*test-masked"):
            check_keeps(prior, masks)
    else:
        check_keeps(prior, masks)
    if keeps == "first":
        check_keeps(prior, upper[0] + upper[1])
        check_keeps(prior, tuple(torch.arange(mask[0].numel()).view(mask.shape) < 3 for mask in masks))


# Masks as files and boxes.


@pytest.fixture
def pictures(tmp_path):
    save_pictures(tmp_path / "pictures")
    return tmp_path / "pictures"


def read(mask, folder, size=SIZE):
    return read_masks([str(each) for each in mask], size, folder, sorted(folder.iterdir()))


def test_a_box_is_given_in_pixels_or_in_shares(pictures):
    box = outside((slice(4, 8), slice(6, 18)))
    for mask in (("4", "6", "4", "12"), ("0.25", "0.25", "0.25", "0.5"), ("4", "0.25", "4", "0.5")):
        assert torch.equal(read(mask, pictures), box[None])


def test_white_is_hidden_and_black_is_known(pictures, tmp_path, capsys):
    white = ~outside().numpy() * 255
    assert torch.equal(read([save(tmp_path / "m.png", white)], pictures), outside()[None])
    assert "greys" not in capsys.readouterr().out
    soft = np.where(white, 140, 100)
    assert torch.equal(read([save(tmp_path / "soft.png", soft)], pictures), outside()[None])
    assert "soft.png: greys of 128 and above count as white" in capsys.readouterr().out


def test_masks_of_a_folder_belong_to_the_pictures_of_their_names(pictures, tmp_path):
    boxes = [outside((slice(0, 4), slice(4 * number, 24))) for number in range(3)]
    for number, box in enumerate(boxes):
        save(tmp_path / "masks" / f"{number}.bmp", ~box.numpy() * 255)
    assert torch.equal(read([tmp_path / "masks"], pictures), torch.stack(boxes))
    for name in ("0.bmp", "2.bmp"):
        (tmp_path / "masks" / name).unlink()
    with pytest.raises(InputError, match=r"masks: it holds no mask for 0\.png and 1 more: give one of this name"):
        read([tmp_path / "masks"], pictures)


@pytest.mark.parametrize("of_picture", [(32, 48), (64, 100), (12, 18)], ids=str)
@pytest.mark.parametrize("scale", [1, 2])
def test_nothing_that_a_mask_of_the_pictures_shape_hides_is_in_a_known_pixel(of_picture, scale, tmp_path):
    pipeline, known = make_pipeline(), torch.ones(of_picture, dtype=torch.bool)
    known[of_picture[0] // 3 : of_picture[0] // 2, of_picture[1] // 2 : -3] = False
    mask = np.repeat(np.repeat(~known.numpy() * 255, scale, 0), scale, 1)
    images = np.random.default_rng(0).integers(0, 256, (2, *of_picture))
    images[1] = np.where(known, images[0], 255 - images[0])
    for number, image in enumerate(images):
        save(tmp_path / "pictures" / f"{number}.png", image)
    (found,) = read([save(tmp_path / "m.png", mask)], tmp_path / "pictures")
    one, other = (pipeline._prepare(Image.open(tmp_path / "pictures" / f"{number}.png")) for number in (0, 1))
    assert torch.equal(one[0, 0][found], other[0, 0][found]) and not torch.equal(one, other)
    assert found.float().mean() > 0.5


def test_a_mask_of_the_shape_of_the_tokenizers_images_is_for_pictures_of_any_shape(tmp_path):
    save_pictures(tmp_path / "pictures", size=(50, 50))
    white = np.repeat(np.repeat(~outside().numpy() * 255, 3, 0), 3, 1)
    assert torch.equal(read([save(tmp_path / "m.png", white)], tmp_path / "pictures"), outside()[None])


@pytest.mark.parametrize(
    "mask,reason",
    [
        (("{folder}/no.png",), "no.png: there is no such file or folder: give a picture, a folder of pictures, or a"),
        (("4", "4"), "`mask` 4 4: there is no such file or folder"),
        (("4", "4", "4", "x"), "`mask` x: it is neither a number of pixels nor a share such as 0.25"),
        (("4", "4", "4", "nan."), "`mask` nan.: it is neither"),
        (("4", "4", "4", "21"), "`mask` 4 4 4 21: this box does not lie in the tokenizer's 16×24 pixels"),
        (("4", "4", "0", "4"), "`mask` 4 4 0 4: it hides nothing, so that there is nothing to draw"),
        (("0", "0", "1.0", "1.0"), "it hides everything: use `sample` alone"),
        (("{folder}/black.png",), r"black.png: it hides nothing.* \(white is drawn anew, black is kept\)"),
        (("{folder}/text.png",), "text.png is not a readable picture"),
        (("{folder}/tall.png",), "tall.png has 24×16 pixels: it must have the shape of its picture, 16×24, or of"),
    ],
)
def test_a_bad_mask_is_refused_in_one_line(mask, reason, pictures, tmp_path):
    save(tmp_path / "black.png", np.zeros(SIZE))
    save(tmp_path / "tall.png", np.zeros(SIZE[::-1]))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=reason):
        read([each.format(folder=tmp_path) for each in mask], pictures)


# The command.


def complete(run, folder, pictures, **settings):
    models = {"tokenizer": str(run / "tokenizer"), "prior": (str(run / "prior"),)}
    sample(Sample(**models, output=str(folder), complete=str(pictures), **settings))
    return folder


def test_the_command_and_python_complete_a_masked_picture_alike(run, pictures, tmp_path, capsys):
    folder, pipeline = run
    box = ("4", "10", "5", "11")
    done = complete(folder, tmp_path / "c", pictures, mask=box, num_samples=2, paste=True)
    assert "kept: 16 of 24 codes" in capsys.readouterr().out
    images = torch.stack(
        [to_float(torch.tensor(np.array(Image.open(path)))[None]) for path in sorted(pictures.iterdir())]
    )
    expected = pipeline.complete(images, outside(), 2, seed=0, paste=True)
    found = np.load(done / "completions.npz")["arr_0"]
    assert np.abs(found[..., 0] / 127.5 - 1 - expected.images[:, 0].numpy()).max() < 0.02
    codes = complete(folder, tmp_path / "codes", pictures, mask=box, num_samples=2, format="codegrid")
    assert equal(CodeDataset(codes).batch(range(6)).codes, expected.codes)
    assert json.loads((done / "files.json").read_text()) == [f"{number}.png" for number in range(3) for _ in range(2)]


def test_the_sheet_shows_hidden_pixels_grey(run, pictures, tmp_path):
    for path in pictures.iterdir():
        save(path, np.full(SIZE, 255))
    done = complete(run[0], tmp_path / "c", pictures, mask=("0.0", "0.5", "1.0", "0.5"), num_samples=1)
    sheet = np.asarray(Image.open(done / "completions.png").convert("L"))
    given = sheet[:, : sheet.shape[1] // 3]
    whites, greys = (int((given == value).sum()) for value in (255, 128))
    assert 0.5 < greys / whites < 1.5


def test_another_mask_into_the_same_folder_is_refused(run, pictures, tmp_path):
    complete(run[0], tmp_path / "c", pictures, mask=("0", "0", "4", "4"), num_samples=1)
    with pytest.raises(InputError, match="was made with complete"):
        complete(run[0], tmp_path / "c", pictures, mask=("0", "0", "4", "5"), num_samples=1)


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"mask": ("m.png",)}, "`mask` needs `complete`: give it a folder of pictures"),
        ({"mask": ("m.png",), "complete": "p", "keep_rows": 2}, "`keep_rows` and `mask` both say what is kept"),
        ({"paste": True, "complete": "p"}, "`paste` needs a `mask`, which says what is known"),
        ({"paste": True, "complete": "p", "mask": ("m.png",), "format": "codegrid"}, "`paste` needs images"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        Sample(tokenizer=("t",), prior=("p",), **settings)


# Known pixels in the completions.


def test_pasted_pixels_are_those_that_are_given_and_hidden_ones_are_drawn():
    pipeline, images, known = make_pipeline(), draw_images(2), outside((slice(0, 16), slice(14, 24)))
    plain, pasted = (pipeline.complete(images, known, 2, seed=0, paste=paste).images for paste in (False, True))
    whole = images.repeat_interleave(2, 0)
    assert torch.equal(pasted[..., 14:], plain[..., 14:])
    assert torch.allclose(pasted[..., :12], whole[..., :12]) and not torch.equal(plain[..., :12], whole[..., :12])
    seam = ((pasted - plain) / (whole - plain))[..., 12:14].median(0).values.median(1).values
    assert torch.allclose(seam, torch.tensor([2, 1]) / 3, atol=1e-3)
    with pytest.raises(InputError, match="`paste` needs `keep` to be a mask over pixels"):
        pipeline.complete(images, 2, paste=True)


def test_a_seam_grows_with_the_distance_to_hidden_pixels():
    known = outside((slice(2, 3), slice(5, 6)), (6, 9))[None]
    assert (weigh(known, 2)[0, 2] * 3).tolist() == pytest.approx([3, 3, 3, 2, 1, 0, 1, 2, 3], abs=1e-5)


# The viewer.


def test_the_viewer_draws_a_box_anew_where_the_priors_can_keep_any_codes():
    pytest.importorskip("gradio")
    from codegrid.pipelines.viewer import actions
    from codegrid.pipelines.viewer.answers import Answers
    from codegrid.pipelines.viewer.examples import Examples
    from codegrid.pipelines.viewer.page import build_page

    pipeline, image = make_pipeline("a hierarchy"), draw_images(1)
    pyramid = make_pyramid()
    assert Answers(pipeline.tokenizer, pipeline, None).fills_any()
    assert not Answers(pyramid.tokenizer, pyramid, None).fills_any()
    page = build_page(pipeline.tokenizer, pipeline, Examples(image, "noise"), "toy")
    shown = [part["props"].get("label") for part in page.get_config_file()["components"]]
    assert "Hidden from row" in shown and "Rows of codes to keep" not in shown
    found = []
    for each in (image, torch.where(outside(), image, -image)):
        encoded = actions.encode(pipeline.tokenizer, each)
        code = (int(encoded.codes[1][0, 0, 0]) + 1) % 16
        encoded = encoded._replace(codes=actions.edit(pipeline.layout, encoded.codes, 1, 0, 0, code))
        *_, last = actions.fill_in(pipeline, encoded, (4, 10, 5, 11), 2, 1, 0)
        assert (last.codes[1][:, 0, 0] == code).all()
        found.append(last.codes)
    assert equal(*found)
    kept, expected = pipeline.tokenizer.kept_sites(outside()), pipeline.complete(image, outside(), seed=0).codes
    kept[1][0, 0] = False
    for sites, drawn, other in zip(kept, found[0], expected, strict=True):
        assert torch.equal(drawn[:1, sites], other[:, sites])


def test_the_viewer_offers_no_rows_that_a_prior_cannot_keep():
    pytest.importorskip("gradio")
    from codegrid.pipelines.viewer.answers import Answers

    pipeline = make_pipeline("a hierarchy")
    for keeps, offered in (("none", False), ("first", True), ("roughly", True)):
        pipeline.priors[0].keeps = keeps  # one prior of both grids, which draws the coarse codes first
        assert bool(Answers(pipeline.tokenizer, pipeline, None).rows_to_keep()) == offered
