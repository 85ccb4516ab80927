"""Pictures for people: sheets of images, figures, colours of codes."""
