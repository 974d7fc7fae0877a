"""Models that others wrote, each built small from its configuration: does a training step of it run, and is it right?

`python -m experiments.zoo` tries them and writes docs/reference/models.md. A family of models is a file in `families`.
"""
