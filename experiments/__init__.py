"""Experiments: claims tested, and things timed. Not part of the installed package.

`python -m experiments` lists the claims, runs them, and writes what came out: docs/how-to/reproduce.md.
"""
