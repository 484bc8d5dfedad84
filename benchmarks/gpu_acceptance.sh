#!/usr/bin/env bash
# GPU tests, then the throughput table, in one command under ten minutes.
#
# Needs torch and timm, and, given as wheels in the folder $1 (default .whl), whatever of pydantic,
# deepspeed, hjson, av, opencv-contrib-python-headless the machine's Python lacks. They are installed
# into a folder of their own that comes first on the path: another OpenCV would hide TV-L1.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
site=$(mktemp -d)
if compgen -G "$wheels/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$site:platform${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -c "import torch; assert torch.cuda.is_available(), 'no GPU'; print(torch.cuda.get_device_name())"
python3 -m pytest -m gpu -q -p no:cacheprovider tests
python3 benchmarks/pretrain_step.py --batch 32
python3 benchmarks/pretrain_step.py --batch 64
python3 benchmarks/extraction.py --quick
