"""MaskGIT: a prior that draws many sites at once."""
