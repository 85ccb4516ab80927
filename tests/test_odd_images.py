"""Images from outside: odd pictures, odd npz files, and what is no data set at all."""

import io
import struct
import warnings
import zipfile
import zlib
from importlib.util import find_spec, module_from_spec

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image

from codegrid.data.npz import read_npz
from codegrid.data.sources import load_images
from codegrid.errors import InputError


def png_of(height, width, pixels=b""):
    """A PNG file that claims a size, whatever it holds."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PHOTO = Image.fromarray(draw_bars(1, channels=3)[0][0])
RAMP = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)


@pytest.mark.parametrize(
    "name,content,reason",
    [
        ("huge.png", png_of(50_000, 50_000, bytes(10**6)), "could be decompression bomb"),
        ("long.png", png_of(2**31 - 1, 1), "decompression bomb"),
        ("empty.png", b"", "cannot identify"),
        ("cut.jpg", saved(PHOTO, "JPEG")[:300], "not a readable picture"),
        ("cut.gif", saved(PHOTO, "GIF")[:30], "not a readable picture"),
        ("nothing.png", png_of(12, 20), "not a readable picture"),
        ("program.png", saved(PHOTO, "EPS"), "cannot identify"),  # reading it would start Ghostscript
        ("float.tif", saved(PHOTO.convert("F"), "TIFF"), "values of 32 bits"),
        ("wide.tif", saved(PHOTO.convert("I"), "TIFF"), "values of 32 bits"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, reason):
    for i in range(2):
        (tmp_path / f"{i}{name}").write_bytes(content)
    with pytest.raises(InputError, match=f"0{name} .*{reason}"):
        load_images("imagefolder", tmp_path, "train", (8, 8))


def test_large_pictures_are_refused_before_they_are_decoded_whatever_pillow_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "0.png").write_bytes(png_of(50_000, 50_000))
    with pytest.raises(InputError, match=r"0.png has 50000×50000 pixels, at most 178,956,970 are read"):
        load_images("imagefolder", tmp_path, "train", (8, 8))


def test_a_picture_that_pillow_finds_large_is_read_without_noise(tmp_path, monkeypatch):
    Image.new("L", (15, 10)).save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        spec = find_spec("codegrid.data.pictures")
        spec.loader.exec_module(module_from_spec(spec))  # sets the filter, which pytest has taken away
        load_images("imagefolder", tmp_path, "all", (8, 8))
    assert not [each for each in heard if issubclass(each.category, Image.DecompressionBombWarning)]


def jpeg_of(scans):
    """A progressive JPEG whose last scan stands there so often that there are this many."""
    content = saved(PHOTO, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (scans - content.count(b"\xff\xda") + 1) + content[-2:]


def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_refused(tmp_path):
    for i, scans in enumerate((101, 30)):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg_of(scans))
    with pytest.raises(InputError, match=r"0.jpg is a JPEG with more than 100 scans"):
        load_images("imagefolder", tmp_path, "train")
    (tmp_path / "0.jpg").write_bytes(jpeg_of(30) + b"\0\0\xff\xda" * 1000)  # a film behind the picture, say
    assert len(load_images("imagefolder", tmp_path, "train")) == 1


@pytest.mark.parametrize(
    "name,content",
    [
        ("animated.gif", saved(PHOTO.convert("P"), "GIF", save_all=True, append_images=[Image.new("P", (20, 12))])),
        ("palette.png", saved(PHOTO.convert("P"), "PNG")),
        ("cmyk.jpg", saved(PHOTO.convert("CMYK"), "JPEG", quality=95)),
        ("misnamed.png", saved(PHOTO, "WEBP", lossless=True)),
    ],
)
def test_unusual_pictures_show_what_a_viewer_shows(tmp_path, name, content):
    for i in range(2):
        (tmp_path / f"{i}{name}").write_bytes(content)
    image = load_images("imagefolder", tmp_path, "train").images[0]
    assert (
        image.permute(1, 2, 0).float() - torch.from_numpy(np.array(PHOTO)).float()
    ).abs().mean() < 20  # a palette is coarse


def test_sixteen_bits_of_other_formats_keep_their_shades_too(tmp_path):
    for kind in ("pgm", "tif"):
        root = tmp_path / kind
        root.mkdir()
        for i in range(2):
            if kind == "pgm":
                (root / f"{i}.pgm").write_bytes(b"P5 20 12 65535\n" + RAMP.astype(">u2").tobytes())
            else:
                Image.fromarray(RAMP).save(root / f"{i}.tif")
        image = load_images("imagefolder", root, "train").images[0, 0]
        assert torch.equal(image, torch.from_numpy((RAMP >> 8).astype(np.uint8)))


def tiff_of(pixels, *extra_samples):
    """An uncompressed TIFF file of colour (H, W, c); `extra_samples` say what the bands beyond the third are."""
    height, width, bands = pixels.shape
    tags = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * bands, 259: [1], 262: [2], 273: [8],
            277: [bands], 278: [height], 279: [pixels.nbytes]}  # fmt: skip
    if extra_samples:
        tags[338] = extra_samples
    data, entries = pixels.tobytes(), b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, data = struct.pack("<I", 8 + len(data)), data + packed
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


SCENE = np.full((4, 4, 5), (30, 60, 90, 240, 50), dtype=np.uint8)  # red, green, blue, near infrared and more


@pytest.mark.parametrize(
    "name,content",
    [
        ("unsaid.tif", tiff_of(SCENE[..., :4])),
        ("other.tif", tiff_of(SCENE[..., :4], 0)),
        ("five.tif", tiff_of(SCENE, 0, 0)),
        ("five_with_alpha.tif", tiff_of(SCENE, 2, 0)),
        ("four.jp2", saved(Image.fromarray(SCENE[..., :4].copy()), "JPEG2000")),
    ],
)
def test_bands_that_may_be_anything_are_refused(tmp_path, name, content):
    for i in range(2):
        (tmp_path / f"{i}{name}").write_bytes(content)
    with pytest.raises(InputError, match=f"0{name} has more bands than colours.*: save it with 1 or 3 bands"):
        load_images("imagefolder", tmp_path, "train")


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (4, 4))]}
RGB = Image.fromarray(SCENE[..., :3].copy())


@pytest.mark.parametrize(
    "name,content,told",
    [
        ("alpha.tif", tiff_of(SCENE[..., :4], 2), "with transparent parts (laid on white)"),
        ("alpha.png", saved(Image.fromarray(SCENE[..., :4].copy()), "PNG"), "with transparent parts (laid on white)"),
        ("opaque.png", saved(RGB.convert("RGBA"), "PNG"), ""),
        ("deep.tif", tiff_of(SCENE[..., :3].astype(np.uint16) * 257), "with more than 8 bits (the upper 8 are kept)"),
        ("deep.png", saved(Image.fromarray(RAMP), "PNG"), "with more than 8 bits (the upper 8 are kept)"),
        ("deep.ppm", b"P6 1 1 65535\n\1\2\3\4\5\6", "with more than 8 bits (the upper 8 are kept)"),
        ("pages.tif", saved(RGB, "TIFF", **FRAMES), "with several pages or frames (the first is read)"),
        ("film.gif", saved(RGB, "GIF", **FRAMES), "with several pages or frames (the first is read)"),
        ("film.webp", saved(RGB, "WEBP", **FRAMES), "with several pages or frames (the first is read)"),
        ("print.jpg", saved(RGB.convert("CMYK"), "JPEG"), "in CMYK (converted to RGB)"),
        ("plain.tif", tiff_of(SCENE[..., :3]), ""),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
@pytest.mark.parametrize("limit", [2**31, 0], ids=["in memory", "on demand"])
def test_what_is_dropped_of_pictures_is_told(tmp_path, name, content, told, limit, monkeypatch):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", limit)
    for i in range(3):
        (tmp_path / f"{i}{name}").write_bytes(content)
    said = str(load_images("imagefolder", tmp_path, "train").found).split("; ")
    assert said[-1] == (f"2{'' if limit else ' of 2 looked at'} {told}" if told else "test is held out")


@pytest.mark.parametrize(
    "arrays,reason",
    [
        ({"arr_0": np.zeros((4, 8, 8, 2), dtype=np.uint8)}, "1 or 3 channels"),
        ({"arr_0": np.zeros((0, 8, 8), dtype=np.uint8)}, "no images"),
        ({"arr_0": np.zeros((4, 8, 8), dtype=np.uint8), "arr_1": np.zeros(3, dtype=np.int64)}, "arr_1"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "not a readable npz"),
    ],
)
def test_an_npz_that_holds_something_else_is_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=reason):
        load_images("npz", tmp_path / "a.npz", "train")


PIXELS = np.zeros((4, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    "labels,reason",
    [
        (np.array([0, 1, 2, 10**12]), "arr_1: label 1000000000000: labels must be below 1,000,000"),
        (np.array([0, 1, 2, 2**64 - 1], dtype=np.uint64), "labels must be below"),
        (np.array([0, 1, 2, -1]), "whole numbers from 0"),
        (np.array([0.0, 1, 2, 3]), "one class number from 0"),
        (np.array([True, True, False, False]), "one class number from 0"),
        (np.zeros(4, dtype=[("a", int)]), "one class number from 0"),
        (np.zeros((4, 2), dtype=int), "one class number from 0"),
        (np.array([], dtype=int), "one class number from 0"),
    ],
)
def test_labels_that_are_not_class_numbers_are_refused(tmp_path, labels, reason):
    np.savez(tmp_path / "a.npz", PIXELS, labels)
    with pytest.raises(InputError, match=reason):
        load_images("npz", tmp_path / "a.npz", "train")


def test_big_endian_labels_are_read_as_the_numbers_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS, np.array([0, 1, 2, 300], dtype=">i2"))
    parts = [load_images("npz", tmp_path / "a.npz", split) for split in ("train", "test")]
    assert sorted(torch.cat([part.labels for part in parts]).tolist()) == [0, 1, 2, 300]


def entry_of(shape, kind="'|u1'", data=b""):
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "entry",
    [
        entry_of("(4, 8, 8)", data=bytes(255)),
        entry_of(f"({10**15}, 8, 8)", data=bytes(256)),
        entry_of(f"({2**62}, {2**62}, 8)", data=bytes(256)),
        entry_of("(-4, 8, 8)", data=bytes(256)),
        entry_of("(4, 8, 8)", kind="'|O'", data=bytes(2048)),
        entry_of("(4, 8, 8)", kind="__import__('os')", data=bytes(256)),
        entry_of("(4, 8, 8)" + " " * 60_000, data=bytes(256)),
        b"raw bytes",
        b"",
    ],
    ids=lambda entry: str(entry[10:70]),
)
def test_an_npz_entry_that_is_not_what_its_header_says_is_refused(tmp_path, entry):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", entry)
    with pytest.raises(InputError, match=r"not a readable npz|holds no arrays"):
        load_images("npz", tmp_path / "a.npz", "train")


def test_entries_that_are_not_arrays_are_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("arr_1", b"raw bytes")
        archive.writestr("notes.npy", b"raw bytes")
    assert list(read_npz(tmp_path / "a.npz")) == ["arr_0"]
    assert load_images("npz", tmp_path / "a.npz", "train").labels is None


def test_an_npz_that_no_memory_holds_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((10, 1000, 1000), dtype=np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    monkeypatch.setattr("codegrid.budget.machine_memory", lambda: 10**6)
    with pytest.raises(InputError, match="would take 10,000,128 bytes, but this machine has 1,000,000"):
        load_images("npz", tmp_path / "a.npz", "train")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N.", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_not_an_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable npz"):
        load_images("npz", tmp_path / "a.npz", "train")


@pytest.mark.parametrize(
    "shape,size,reason",
    [
        ((1, 1, 8000), (8000,), "cannot be brought to 8000×8000"),
        ((1, 1, 9000), (), "give `image_size`, at most 8192"),
        ((1, 8, 8), (10**9, 1), "give one number from 1 to 8192"),
    ],
)
def test_sizes_that_no_memory_holds_are_refused(tmp_path, shape, size, reason):
    np.savez(tmp_path / "a.npz", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(InputError, match=reason):
        load_images("npz", tmp_path / "a.npz", "train", size)


def test_an_npz_with_any_byte_damaged_is_read_whole_or_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, codes=np.arange(30).reshape(2, 3, 5), labels=np.array([0, 1]))
    content = path.read_bytes()
    expected = {name: array.tolist() for name, array in read_npz(path).items()}
    refused = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        try:
            assert {name: array.tolist() for name, array in read_npz(path).items()} == expected
        except InputError:
            refused += 1
    assert refused > len(content) / 2


def test_an_array_that_damage_to_the_directory_would_hide_is_not_missed(tmp_path):
    """The directory of a zip file has no checksum: one more byte of comment, and the entry behind it is skipped."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, codes=np.arange(30).reshape(2, 3, 5), labels=np.array([0, 1]))
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 33] ^= 1  # the length of the first entry's comment: 256 bytes
    path.write_bytes(content)
    with np.load(path) as file:
        assert file.files == ["codes"]
    with pytest.raises(InputError, match="1 of 2 arrays are found"):
        read_npz(path)
