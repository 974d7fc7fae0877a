"""Experiments: claims tested and things timed. Not part of the installed package."""
