#!/bin/sh
# Train with one process per worker under SLURM: sbatch examples/slurm.sh
# Processes.join reads what srun sets. Set MASTER_ADDR if the first node's name is loopback on itself.
#SBATCH --job-name=skerry
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
srun python examples/torchrun.py
