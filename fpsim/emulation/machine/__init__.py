"""The machine that rules compute on: what its numbers mean, how operands come in and results go out."""
