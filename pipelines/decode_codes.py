"""Turn codes back into images: codes → decoder.

python -m pipelines.decode_codes --tokenizer runs/demo/tokenizer --codes runs/demo/codes --output runs/decoded
"""

from .cli import run_script, say
from .configs import DecodeCodes


def decode_codes(settings: DecodeCodes) -> None:
    """Write images.png and images.npz into `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    import torch
    from tqdm import tqdm

    from data.images import to_uint8
    from stage1_vqvae import VQVAE

    from .batches import in_order, load_batches
    from .codes_file import open_codes
    from .image_files import write_images
    from .run_folder import Run
    from .runtime import choose_device

    device = choose_device(settings.device)
    tokenizer = VQVAE.from_pretrained(settings.tokenizer, device)
    codes = open_codes(settings.codes, tokenizer)
    run = Run(settings.output, settings, tokenizer=tokenizer.fingerprint(), codes=codes.identity())
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    run.start()
    images = []
    with tqdm(total=len(codes), desc="decoding", unit="img") as bar:
        for batch in load_batches(codes, in_order(len(codes), settings.batch_size)):
            images.append(to_uint8(tokenizer.decode(batch.codes.to(device)).cpu()))
            bar.update(len(batch.codes))
    labels = codes.labels
    run.finish_with(lambda folder: write_images(folder, "images", torch.cat(images), labels))
    say(f"{settings.output}: {len(codes)} images in images.npz, a page of them in images.png")


def main() -> None:
    """The command line."""
    run_script(DecodeCodes, decode_codes)


if __name__ == "__main__":
    main()
