"""A page in the browser, by gradio."""
