"""What happened to the numbers: the records of a report, and how they are shown. Needs neither torch nor numba."""
