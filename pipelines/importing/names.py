"""Projects whose checkpoints can be imported: name → the file that knows them. Nothing here imports torch.

A new source is a file with a `SOURCE`, and a line here.
"""

# the first one that knows all of its keys in a checkpoint takes it
SOURCES = {
    "net2net": "net2net",
    "var": "var",  # it has the keys of the next one, too
    "taming": "taming",
    "diffusers": "vq_model",
    "llamagen": "llamagen",
    "rosinality": "rosinality",
    "mishalaskin": "mishalaskin",
    "zalando": "zalando",
    "sonnet": "sonnet",
    "dalle": "dalle",
}
