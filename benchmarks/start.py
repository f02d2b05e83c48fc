"""Measure the stages from the start of `inference.py` to its first result.

Started by `python -m benchmarks` as a separate process. Prints a JSON object {stage: seconds}.
"""

import json
import sys
import time
from pathlib import Path

stages = {}
last = time.perf_counter()


def passed(stage: str) -> None:
    global last
    now = time.perf_counter()
    stages[stage], last = round(now - last, 3), now


def main(device: str, checkpoint_dir: str) -> None:
    import utils  # noqa: F401

    passed("import torch and torchvision")
    import inference  # noqa: F401
    from evaluation.policies import assemble
    from utils.checkpoint import load_parts
    from utils.device import for_inference, pick_device
    from utils.logits import predict

    passed("import the rest")
    import torch

    place = pick_device(device)
    parts = load_parts(lambda file: Path(checkpoint_dir) / file)
    ready = {arch: for_inference(net, place) for arch, (net, _) in parts.items()}
    system = assemble("selector", parts, ready)
    passed("load the weights")
    predict(system.net, torch.zeros(1, 32, 32, 3, dtype=torch.uint8, device=place))
    passed("first answer")
    print(json.dumps(stages))


if __name__ == "__main__":
    main(*sys.argv[1:])
