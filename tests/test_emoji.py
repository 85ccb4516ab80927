"""Emoji: two packages as they are unpacked, drawn here in their form, and combinations that are held out."""

import pytest
from small_emoji import ROLES, TONES, draw_emoji

from codegrid import load_images
from codegrid.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Both packages, with a symbol, an emoji without a label, and 20 roles in five tones."""
    return draw_emoji(tmp_path_factory.mktemp("emoji"))


def test_emoji_lie_on_white_and_have_a_category_and_captions(root):
    images = load_images("emoji", root, "all")
    assert images.images.shape == (2 + 6 * ROLES, 3, 64, 64) and images.classes == ["People & Body", "Symbols"]
    assert (images.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    captions = dict(zip(images.files, images.captions, strict=True))
    assert captions["2764-fe0f.png"] == ("red heart", "heart", "red heart, love, emotion", "red heart, heart")
    assert captions["1f600.png"] == ("no-label", "no label")
    toned = ("role 3: dark skin tone", "role 3: dark skin tone, person")
    assert captions["1f003-1f3ff.png"] == toned and captions["1f003.png"][:1] == ("role 3",)
    assert load_images("emoji", root, "all", (32,)).images.shape[2:] == (32, 32)


def test_a_tenth_of_the_combinations_of_role_and_tone_are_held_out_and_their_parts_are_learnt(root):
    train, test = (load_images("emoji", root, split) for split in ("train", "test"))
    assert len(test) == ROLES * 5 / 10 and len(train) + len(test) == 2 + 6 * ROLES
    held_out = [texts[0].split(": ") for texts in test.captions]
    roles, tones = zip(*held_out, strict=True)
    assert sorted(tones) == sorted(f"{words} skin tone" for words in TONES.values() for _ in range(ROLES // 10))
    assert len(set(roles)) == len(roles)  # each one is learnt in all other tones
    learnt = {texts[0] for texts in train.captions}
    for role in roles:
        assert role in learnt and sum(text.startswith(f"{role}: ") for text in learnt) == 4
    assert not learnt & {texts[0] for texts in test.captions}


def test_missing_packages_are_named_with_the_command_that_fetches_them(root, tmp_path):
    words = "does not hold {}: run `npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0` and unpack"
    with pytest.raises(InputError, match=words.format("emoji-datasource-google")):
        load_images("emoji", tmp_path)
    with pytest.raises(InputError, match=words.format("emojibase-data")):
        load_images("emoji", root / "emoji-datasource-google-16.0.0")


@pytest.mark.parametrize("content", ["{", "{}", "[7]", '[{"unified": "A", "image": "../a.png", "category": "a"}]'])
def test_a_damaged_package_is_refused(root, tmp_path, content):
    for name in ("img/google/64", "x/en"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x" / "en" / "data.json").write_text("[]")
    (tmp_path / "emoji.json").write_text(content)
    with pytest.raises(InputError, match="unpack it again"):
        load_images("emoji", tmp_path)
