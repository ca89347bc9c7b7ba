"""``python -m skerry``, also for torchrun: ``torchrun --standalone --nproc-per-node 4 -m skerry train ...``.

Without the extra ``experiments`` it prints the command that installs it.
"""

from skerry.experiments.cli import entry

if __name__ == "__main__":
    entry()
