"""Pixels in, pixels out (numpy, Pillow)."""
