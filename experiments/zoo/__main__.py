"""`python -m experiments.zoo`."""

from experiments.zoo.command import main

main()
