"""Every compiled kernel: numbers in, numbers out. Imports nothing of fpsim outside this folder."""
