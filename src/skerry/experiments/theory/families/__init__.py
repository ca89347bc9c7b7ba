"""Theorems of GIST, LoFT, ResIST and AsyncDrop."""
