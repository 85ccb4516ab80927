"""Run `codegrid NAME ...` as `python -m codegrid NAME ...`, the form that `torchrun -m codegrid NAME ...` needs."""

from .command import main

if __name__ == "__main__":
    main()
