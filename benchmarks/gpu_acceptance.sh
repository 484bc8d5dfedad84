#!/usr/bin/env bash
# GPU tests, then the throughput table, in one command under ten minutes.
#
# Needs torch, timm, pytest, numpy and PyYAML, and, given as wheels in the folder $1 (default .whl),
# whatever of these the machine's Python lacks: pydantic with pydantic_core, annotated_types,
# typing_inspection and typing_extensions; einops; deepspeed with hjson, msgpack, ninja, psutil,
# py-cpuinfo and tqdm. They are installed into a folder of their own that comes first on the path.
# Where Ray, PyAV, pyarrow, fsspec and opencv-contrib-python-headless are there too (another OpenCV
# would hide TV-L1), extraction is measured as well.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
site=$(mktemp -d)
if compgen -G "$wheels/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$site:platform${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -c "import torch; assert torch.cuda.is_available(), 'no GPU'; print(torch.cuda.get_device_name())"
# Without the project's settings and conftest, which need all that the other tests import.
python3 -m pytest -c /dev/null --rootdir . --noconftest -q -p no:cacheprovider tests/training/test_gpu.py
python3 benchmarks/pretrain_step.py --batch 32
python3 benchmarks/pretrain_step.py --batch 64
if python3 -c "import ray, av, pyarrow, fsspec, cv2.optflow" 2> /dev/null; then
  python3 benchmarks/extraction.py --rounds 1
else
  echo "extraction not measured: ray, av, pyarrow, fsspec or cv2.optflow is missing"
fi
