"""Recording what a machine computes. Needs torch and NumPy alone, so that it runs where the rest of fpsim is not installed.

`fpsim record --write-recorder recorder.pyz` packs this folder into one file; `python recorder.pyz -o bundle.npz` runs it anywhere.
"""
