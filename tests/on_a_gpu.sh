#!/usr/bin/env bash
# What only a GPU can tell: tests/test_gpu.py, then the speeds, as JSON in $OUT. From the project's root, with deeplense installed.
# The first tests make the steps of all jobs with torch.cuda.set_sync_debug_mode("error"): where the host waits for the GPU, they fail.
set -uo pipefail
OUT=${OUT:-gpu}
mkdir -p "$OUT"
measure() { python -m launch benchmark "$1" --device cuda --rounds 3 --output "$OUT/$2.json" "${@:3}"; }
earlier="--model_name unet_earlier --image_size 144 --batch_size 16 --precision bf16"

python -m pytest tests/test_gpu.py -k "waits" --junitxml "$OUT/waits.xml"
python -m pytest tests/test_gpu.py -k "not waits"
measure train train
measure pretrain pretrain-vit_small --precision bf16
# 16 images of the earlier setting: under 6 s with 1000 steps, 0.3 s with 50 of ddim, 0.15 s with 20 of dpm_solver, on an H200.
for steps in 1000 50 20; do
    measure sample "sample-$steps" $earlier --compile 1 --num_steps "$steps"
done
measure diffuse diffuse-earlier $earlier
measure diffuse diffuse-earlier-64 $earlier --batch_size 64
