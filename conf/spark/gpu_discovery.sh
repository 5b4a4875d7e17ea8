#!/usr/bin/env bash
# Prints this node's GPUs as Spark wants to be told of them: {"name": "gpu", "addresses": ["0", "1"]}
#
# For spark.worker.resource.gpu.discoveryScript (standalone) and spark.executor.resource.gpu.discoveryScript (YARN,
# Kubernetes). It has to be executable, and to lie at the same path on every node. Taken from, in this order:
#   RERANK_UDF_FAKE_DEVICES   "0,1": pretend GPUs, for tests of placement on machines that have none
#   CUDA_VISIBLE_DEVICES      where it is set: CUDA obeys it, and nvidia-smi does not
#   nvidia-smi -L             each GPU by its number; of one that is cut into MIG instances, each instance by its id
set -euo pipefail

fail() {
  echo "gpu_discovery.sh: $1" >&2
  exit 1
}

tell() {
  local addresses="" address
  for address in "$@"; do
    addresses+="${addresses:+, }\"$address\""
  done
  printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
}

if [[ -n "${RERANK_UDF_FAKE_DEVICES:-}" ]]; then
  IFS=', ' read -r -a devices <<<"$RERANK_UDF_FAKE_DEVICES"
elif [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
  case "$CUDA_VISIBLE_DEVICES" in
    "" | -1 | NoDevFiles) fail "CUDA_VISIBLE_DEVICES is '$CUDA_VISIBLE_DEVICES', which hides every GPU of $(uname -n); unset it, or list GPUs" ;;
  esac
  IFS=', ' read -r -a devices <<<"$CUDA_VISIBLE_DEVICES"
else
  command -v nvidia-smi >/dev/null ||
    fail "there is no nvidia-smi on $(uname -n): install NVIDIA's driver (in a container: its utilities), or run without GPUs, by leaving out the settings that hold resource.gpu"
  listed=$(nvidia-smi -L) || fail "nvidia-smi -L failed on $(uname -n): $listed"
  mapfile -t devices < <(awk '
    /^GPU [0-9]+:/      { if (whole != "") print whole; whole = $2; sub(":", "", whole) }
    /^ +MIG .*UUID: MIG/ { whole = ""; id = $NF; sub("\\)", "", id); print id }
    END                 { if (whole != "") print whole }' <<<"$listed")
fi
[[ ${#devices[@]} -gt 0 ]] || fail "no GPU is named or listed on $(uname -n)"
tell "${devices[@]}"
