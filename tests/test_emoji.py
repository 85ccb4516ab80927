"""Emoji: two packages as they are unpacked, drawn here in their form, and combinations that are held out."""

import json

import pytest
from PIL import Image

from codegrid import load_images
from codegrid.errors import InputError

TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
ROLES = 20


def entry(code, name, category, **more):
    return {"unified": code, "image": f"{code.lower()}.png", "short_name": name, "category": category, **more}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Both packages, with a symbol, an emoji without a label, and 20 roles in five tones."""
    root = tmp_path_factory.mktemp("emoji")
    pictures, names = [entry("2764-FE0F", "heart", "Symbols", sort_order=1), entry("1F600", "no-label", "Symbols")], []
    names.append({"hexcode": "2764", "label": "red heart", "tags": ["love", "emotion", "heart"]})
    for role in range(ROLES):
        code, label = f"1F{role:03X}", f"role {role}"
        variants = {tone: entry(f"{code}-{tone}", "", "") for tone in TONES}
        pictures.append(entry(code, f"role_{role}", "People & Body", skin_variations=variants, sort_order=role + 2))
        skins = [
            {"hexcode": f"{code}-{tone}", "label": f"{label}: {words} skin tone", "tone": number}
            for number, (tone, words) in enumerate(TONES.items(), 1)
        ]
        names.append({"hexcode": code, "label": label, "tags": ["person"], "skins": skins})
    folder = root / "emoji-datasource-google-16.0.0" / "package"
    (folder / "img" / "google" / "64").mkdir(parents=True)
    (root / "names" / "package" / "en").mkdir(parents=True)
    (folder / "emoji.json").write_text(json.dumps(pictures))
    (root / "names" / "package" / "en" / "data.json").write_text(json.dumps(names))
    for one in pictures:
        for each in (one, *one.get("skin_variations", {}).values()):
            icon = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
            icon.paste((200, 30, 30, 255), (20, 20, 44, 44))
            icon.save(folder / "img" / "google" / "64" / each["image"])
    return root


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
