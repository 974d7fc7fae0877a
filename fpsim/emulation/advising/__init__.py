"""What to change: remedies that answer what broke, each tried from the same state and measured against float64."""
