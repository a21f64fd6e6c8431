#!/usr/bin/env bash
# Build the source distribution, and the wheel from it; check both, install each, and try it.
#
#   tools/check_dist.sh VENV
#
# VENV is an environment with what requirements/dist.lock lists.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1/bin
limit=1000000 # bytes

rm -rf dist
"$bin/python" -m build --no-isolation --outdir dist .
"$bin/python" -m twine check --strict dist/*

for file in dist/*; do
  size=$(wc -c <"$file")
  echo "$file: $size bytes"
  if ((size > limit)); then
    echo "error: $file has more than $limit bytes" >&2
    exit 1
  fi
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tools/make_venv.sh "$folder/venv" requirements/demo.lock --no-package
install=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
if ! "$folder/venv/bin/python" -m pip --version >/dev/null 2>&1; then
  install=(uv pip install --quiet --python "$folder/venv/bin/python")
fi
for file in dist/*; do
  echo "trying $file"
  if [[ $file == *.whl ]]; then "${install[@]}" --no-deps "$file"; else
    "${install[@]}" --no-deps --no-build-isolation --force-reinstall "$file"
  fi
  "$folder/venv/bin/python" tools/smoke.py --not-in .
done
