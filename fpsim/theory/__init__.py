"""Error bounds: of one rounding, of any accumulation before and after the fact, and what they assume."""
