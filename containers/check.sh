#!/bin/sh
# What every image must do before it gets its name: import all that jobs need, simulate, train, evaluate. No network.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HOME="$work"
python -c '
import accelerate, h5py, submitit, timm, torch
import deeplense, jobs, launch
print(f"Python with torch {torch.__version__}, timm {timm.__version__}; GPUs: {torch.cuda.device_count()}")'
for split in train test; do
    deeplense simulate --output data --split $split --num_per_class 8 --num_workers 1 > log 2>&1 || { cat log; exit 1; }
done
deeplense train --run run --dataset data --model_name simple_cnn \
    --epochs 1 --batch_size 8 --num_workers 0 > log 2>&1 || { cat log; exit 1; }
deeplense evaluate --run run > log 2>&1 || { cat log; exit 1; }
test -s run/report/index.html
test -s /opt/deeplense/sbom.json
echo "simulated, trained and evaluated"
