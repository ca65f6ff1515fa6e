#!/usr/bin/env bash
# A browser for the playground's tests, where the machine has none: Chromium's headless shell from npm (67 MB), into the
# folder that is named. Does nothing if there is one. Without it those tests are skipped, so whatever fails here is only said.
set -uo pipefail
folder="$1"
say() { echo "setup: $*" >&2; }

for name in chromium chromium-browser google-chrome chrome; do
  command -v "$name" >/dev/null && exit 0
done
[[ -n "${CHROMIUM:-}" || -x "$folder/run" ]] && exit 0
command -v npm >/dev/null || {
  say "no Chromium and no npm to get one: the playground's tests will be skipped (apt-get install chromium)"
  exit 0
}

say "fetching Chromium for the playground's tests (once)"
mkdir -p "$folder" && folder="$(cd "$folder" && pwd)" && cd "$folder" || exit 0
echo '{"private": true}' >package.json
# Told that it is in Amazon's cloud, for which it is made, it unpacks the libraries that it needs beside itself.
{
  npm install --no-audit --no-fund --loglevel=error @sparticuz/chromium >/dev/null &&
    TMPDIR="$folder" AWS_LAMBDA_JS_RUNTIME=nodejs22.x node --input-type=module \
      -e 'import chromium from "@sparticuz/chromium"; await chromium.executablePath();' &&
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$folder/al2023/lib" "$folder/chromium" >run.part &&
    chmod +x run.part && ./run.part --version >/dev/null 2>&1 && mv run.part run && rm -r node_modules
} || say "that failed: the playground's tests will be skipped (apt-get install chromium)"
exit 0
