#!/bin/bash
# A run over several nodes of a SLURM cluster, in a folder that all of them see:
#   OUT=runs/first sbatch examples/slurm.sh train.yaml --set schedule.epochs=2
# The same command resumes. Two minutes before the time limit the run is asked to save and end.
#SBATCH --job-name=dsvl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail

config=${1:?usage: OUT=folder sbatch slurm.sh train.yaml [--set a.b=value ...]}
out=${OUT:?set OUT to the folder of the run}
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
rm -f "$out/stop"
trap 'touch "$out/stop"' USR1

# One torchrun on each node; each starts a rank for each GPU.
srun torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
  --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-endpoint "$first:${RDZV_PORT:-29400}" \
  --max-restarts "${MAX_RESTARTS:-3}" \
  --no-python dsvl-train run --config "$config" --set "out=$out" "${@:2}" &

# The shell's wait returns early when the signal comes.
code=0
while kill -0 $! 2>/dev/null; do wait $! && code=0 || code=$?; done
exit "$code"
