"""What runs the arithmetic: compiled kernels, and the threads that share their work."""
