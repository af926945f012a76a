"""Simulated movies of a real structure with known motion, and all that RELION would have made of them."""
