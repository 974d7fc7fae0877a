"""Running error analysis: bounds of the errors of sums that were made, from their own partial sums."""
