#!/bin/sh
# Installs a wheel or an sdist into a new environment, as its user would, and uses it from an empty folder.
#
#   tools/try_package.sh dist/wamkit-0.1.0-py3-none-any.whl python3.12 pip
#   uv pip compile --resolution lowest-direct --extra all pyproject.toml -o "$PWD/lowest.txt"
#   tools/try_package.sh dist/wamkit-0.1.0-py3-none-any.whl python3.11 uv -c "$PWD/lowest.txt"
#
# Everything after the installer (pip or uv) is an option of its `install`. Prints the versions and the seconds of each
# part. The environment stays where the environment variable KEEP names a folder for it.
set -eu
package=$(realpath "$1") python=$2 installer=$3
shift 3
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
env=${KEEP:-$place/env}
"$python" -m venv "$env"
install() {
  case $installer in
    pip) "$env/bin/pip" install --quiet "$@" ;;
    uv) uv pip install --quiet --python "$env/bin/python" "$@" ;;
    *) echo "the installer is pip or uv, not $installer" >&2; exit 2 ;;
  esac
}
say() { echo "== $(date +%T) $*"; }
export MUJOCO_GL="${MUJOCO_GL:-osmesa}" PYTHONSAFEPATH=1
mkdir "$place/elsewhere" && cd "$place/elsewhere"

say "the core, by $installer on $("$python" --version)"
install "$package" "$@"
"$env/bin/wamkit" --version
"$env/bin/wamkit" list >/dev/null
if "$env/bin/wamkit" validate nowhere 2>said; then exit 1; fi
grep -q "wamkit\[train\]" said

say "with the extras all"
install "$package[all]" "$@"
"$env/bin/wamkit" collect --env metaworld --tasks drawer-open-v3 --episodes 2 --processes 1 --out data
"$env/bin/wamkit" train --recipe metaworld-unified --data data --out run --train.steps 4 --model.width 32 --model.depth 1
"$env/bin/wamkit" eval run --episodes 1 >/dev/null
"$env/bin/wamkit" export run --out model.safetensors
"$env/bin/python" - <<'END'
import numpy as np
import wamkit

model = wamkit.load("model.safetensors")
obs = wamkit.Observation(np.zeros((1, 3, 64, 64), np.uint8), np.zeros(4, np.float32), "open the drawer")
sample = model.sample(obs, "joint", seed=0)
print("actions", sample.actions.shape, "future", sample.future.shape)
END
say "done with $("$env/bin/python" -c '
from importlib.metadata import version
print(*(f"{x} {version(x)}" for x in "torch av numpy gymnasium jaxtyping safetensors scipy tyro pyarrow tensorboard tqdm metaworld mujoco h5py imagecodecs huggingface_hub".split()), sep=", ")')"
