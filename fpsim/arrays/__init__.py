"""The public functions on arrays: shapes and checks, then a sum or a kernel."""
