"""Recipes: settings of whole runs, from images to new images, and the figures to expect of each."""
