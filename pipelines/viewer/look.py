"""Look of the viewer's page: colours with enough contrast to read, a visible focus, pictures of a good size."""

from typing import Any

import gradio as gr

FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}  # fonts of the system: none is downloaded
# (light, dark): contrast with the background is at least 4.5 : 1 for text and 3 : 1 for controls
COLOURS = {
    "body_text_color": ("*neutral_800", "*neutral_100"),
    "body_text_color_subdued": ("*neutral_600", "*neutral_300"),
    "block_info_text_color": ("*neutral_600", "*neutral_300"),
    "block_title_text_color": ("*neutral_800", "*neutral_100"),
    "block_label_text_color": ("*neutral_800", "*neutral_100"),
    "input_placeholder_color": ("*neutral_600", "*neutral_300"),
    "input_border_color": ("*neutral_500", "*neutral_500"),
    "input_border_color_focus": ("*primary_600", "*primary_400"),
    "button_primary_background_fill": ("*primary_600", "*primary_600"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_700"),
    "button_primary_text_color": ("white", "white"),
    "button_secondary_background_fill": ("*neutral_200", "*neutral_700"),
    "button_secondary_text_color": ("*neutral_800", "*neutral_100"),
    "slider_color": ("*primary_600", "*primary_400"),
}
CSS = """
.gradio-container { max-width: 1400px !important; width: 100%; margin: auto; --focus: #1d4ed8; }
.dark.gradio-container, .dark .gradio-container { --focus: #93c5fd; }
.gradio-container .main { padding: 12px !important; }
.gradio-container :is(button, a, input, textarea, [tabindex]):focus-visible {
    outline: 3px solid var(--focus) !important; outline-offset: 2px;
}
.section { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px 16px; }
.pictures { display: grid !important; grid-template-columns: 1fr 1fr 1fr 1.6fr; gap: 16px; align-items: start; }
.pictures > *, .gradio-container figure { min-width: 0 !important; margin: 0; }
@media (max-width: 1000px) { .pictures { grid-template-columns: 1fr 1fr; } }
@media (max-width: 640px) { .pictures > .wide { grid-column: 1 / -1; } }
.pictures.of-sound { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.of-sound > .wide { grid-column: 1 / -1; }
.of-sound #grid :is(.image-frame, img) { width: 100% !important; object-fit: contain !important; }
.sound audio { width: 100%; height: 40px; display: block; }
.sound .waveform { width: 100%; height: 64px; display: block; }
.waveform path { stroke: var(--primary-500); stroke-width: 2px; vector-effect: non-scaling-stroke; }
.gradio-container .sound .spectrogram { height: 128px; display: block; image-rendering: auto; }
.gradio-container .sound .codes { height: 18px; display: block; margin-top: 4px; }
.sheet .sound :is(audio, .waveform) { height: 32px; }
.gradio-container .sheet .sound .spectrogram { height: 80px; }
.gradio-container figure img { image-rendering: pixelated; width: 100%; margin: 0; }
.gradio-container figcaption { color: var(--body-text-color); font-size: 14px; }
.sheet {
    display: grid; gap: 8px;
    --least: max(var(--side), 9%, min(220px, 100% / var(--count) - 8px));
    grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr));
}
.gradio-container .html-container { padding: 0 !important; }
.sheet figcaption { text-align: center; overflow-wrap: anywhere; }
.video .film { max-width: 300px; margin-bottom: 12px !important; }
.video .film.of-2 { max-width: 600px; }
.video .strip { overflow-x: auto; }
.gradio-container .video .strip img { min-width: 900px; image-rendering: auto; }
#grid img { cursor: crosshair; }
:is(#examples, #starts), :is(#examples, #starts) .grid-wrap { height: auto !important; min-height: 0 !important; }
:is(#examples, #starts) .grid-container {
    grid-template-columns: repeat(auto-fill, minmax(max(56px, 8.6%), 1fr)) !important;
    grid-template-rows: none !important; grid-auto-rows: auto !important;
}
:is(#examples, #starts) :is(.gallery-item, .thumbnail-item) { width: 100%; height: auto; min-height: 0; }
:is(#examples, #starts) .thumbnail-item { aspect-ratio: 1; }
:is(#examples, #starts) img { image-rendering: pixelated; }
.control [data-testid="block-info"] { white-space: nowrap; padding-right: 8px; }
footer { display: none !important; }
"""
# gradio wraps the picture of codes in a button without a name
SCRIPT = """() => new MutationObserver(() => {
    document.querySelector('#grid button:not([aria-label])')?.setAttribute('aria-label', 'Codes: click one');
}).observe(document.body, {childList: true, subtree: true})"""


def make_theme() -> gr.Theme:
    """Return the page's theme, light and dark."""
    colours: dict[str, str] = {}
    for name, (light, dark) in COLOURS.items():
        colours |= {name: light, f"{name}_dark": dark}
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", **FONTS).set(**colours)
