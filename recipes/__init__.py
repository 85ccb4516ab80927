"""Recipes: settings of whole runs, from images to new images, and what is claimed of each."""
