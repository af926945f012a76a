"""What is shown in notebooks as ipywidgets."""
