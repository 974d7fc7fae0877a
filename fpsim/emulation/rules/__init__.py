"""A rule for every operation of torch, one file a family."""
