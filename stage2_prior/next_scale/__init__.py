"""The next-scale prior of VAR: a transformer that draws whole grids, from coarse to fine."""
