"""A folder a claim: what each file of it is stands in `experiments/claim.py`."""
