"""The Panel app."""
