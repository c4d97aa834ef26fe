#!/bin/bash
#SBATCH --job-name=lmr-guard-fleet
#SBATCH --array=0-7
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=02:00:00
# sbatch slurm.sh PLAN.toml OUT; then, when all tasks are over, whether they failed or not:
# lmr-guard fleet PLAN.toml --out OUT --merge
# To repeat single tasks: sbatch --array=3,5 slurm.sh PLAN.toml OUT; SHARDS stays what it was.
set -euo pipefail
PLAN=$1
OUT=$2
SHARDS=${SHARDS:-8}
exec lmr-guard fleet "$PLAN" --out "$OUT" --shard "slurm/$SHARDS" --threads "${SLURM_CPUS_PER_TASK:-1}"
