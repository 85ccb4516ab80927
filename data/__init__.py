"""Images in, codes in between: data sets as uint8 images, and data sets of discrete codes."""
