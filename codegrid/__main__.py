"""`python -m codegrid NAME ...` is `codegrid NAME ...`, as torchrun needs it: `torchrun -m codegrid NAME ...`."""

from .command import main

if __name__ == "__main__":
    main()
