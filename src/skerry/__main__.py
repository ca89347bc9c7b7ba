"""``python -m skerry``, and what torchrun starts: ``torchrun --standalone --nproc-per-node 4 -m skerry train ...``."""

from skerry.experiments.cli import entry

if __name__ == "__main__":
    entry()
