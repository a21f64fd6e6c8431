#!/usr/bin/env bash
# Install this package beside its neighbours into a fresh environment, and fit and sample there.
#
#   tools/install_check.sh
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
printf '%s\n' '.[plots,jax,files]' pymc-extras pymc-marketing bambi nutpie >"$folder/wanted.txt"
tools/make_venv.sh "$folder/venv" "$folder/wanted.txt" --no-package
"$folder/venv/bin/python" tools/neighbours.py
