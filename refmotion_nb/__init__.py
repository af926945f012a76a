"""Reference-based motion correction for single-particle cryo-EM, composed in notebooks."""

__version__ = "0.1.0"
