"""Both packages of the emoji data set as they are unpacked, small and of our own drawing."""

import json

from PIL import Image

TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
ROLES = 20


def entry(code, name, category, **more):
    return {"unified": code, "image": f"{code.lower()}.png", "short_name": name, "category": category, **more}


def draw_emoji(root):
    """Write a symbol, an emoji without a label, and 20 roles in five tones, below a folder."""
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
