"""RELION projects: particles, motion-corrected micrographs, references and results."""
