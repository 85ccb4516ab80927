"""Turn codes back into images: codes → decoder.

python -m pipelines.decode_codes --tokenizer runs/demo/tokenizer --codes runs/demo/codes --output runs/decoded
"""

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.use_configs import DecodeCodes


def decode_codes(settings: DecodeCodes) -> None:
    """Write images.npz, in shards where there are many, and images.png into `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    from collections.abc import Iterator

    import torch
    from tqdm import tqdm

    from codegrid.data.code_files import open_codes
    from codegrid.data.images import to_uint8
    from codegrid.data.loading import in_batches, load_batches
    from codegrid.data.npz import ON_A_PAGE, describe, image_files, missing_files, read_first, write_images
    from codegrid.pipelines.drawing.pictures import save_grid
    from codegrid.pipelines.running.device import choose_device
    from codegrid.pipelines.running.run_folder import Run
    from codegrid.stage1_vqvae import VQVAE

    device = choose_device(settings.device)
    tokenizer = VQVAE.from_pretrained(settings.tokenizer, device)
    codes = open_codes(settings.codes, tokenizer)
    run = Run(settings.output, settings, tokenizer=tokenizer.fingerprint(), codes=codes.identity())
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    run.start()
    files = image_files("images", len(codes), settings.shard_size)
    labels = codes.labels
    missing = missing_files(settings.output, files, labels is not None)
    left = sum(map(len, missing.values()))
    with tqdm(total=len(codes), initial=len(codes) - left, desc="decoding", unit="img") as bar:

        def decode(numbers: range) -> Iterator[torch.Tensor]:
            for batch in load_batches(codes, in_batches(numbers, settings.batch_size)):
                yield to_uint8(tokenizer.decode(batch.codes.to(device)).cpu())
                bar.update(len(batch.codes))

        for file, numbers in missing.items():
            shape = (len(numbers), tokenizer.in_channels, *tokenizer.image_size)
            of_these = None if labels is None else labels[numbers.start : numbers.stop]
            write_images(settings.output, file, shape, decode(numbers), of_these)
    run.finish_with(lambda folder: save_grid(folder / "images.png", read_first(settings.output, files, ON_A_PAGE)))
    say(f"{settings.output}: {len(codes):,} images in {describe(files)}, a page of them in images.png")


def main() -> None:
    """The command line."""
    run_script(DecodeCodes, decode_codes)


if __name__ == "__main__":
    main()
