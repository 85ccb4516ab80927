"""What `pipelines.plot` draws: a function for each picture, `(Material, Plot) -> Figure`."""
