"""Views as ipywidgets, for notebooks."""
