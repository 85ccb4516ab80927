"""The viewer: a page in the browser, built with gradio."""
