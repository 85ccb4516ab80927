"""Values that all floors exchange."""

NO_LABEL = -1  # in the place of a class: a grid of no particular one
