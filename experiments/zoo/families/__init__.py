"""A file a family: `entries()` gives its models."""
