"""What is kept of the roundings inside sums: counts, and sums that bound their errors."""
