"""Export the networks to ONNX files, for use without PyTorch.

    python -m evaluation.export --out runs/onnx
    python -m evaluation.export --out runs/onnx --policy cascade

Writes NAME.onnx for each network of the policy, and routing.json with what is needed to choose
between them. The exported networks take uint8 images (N, S, S, 3), of the size S that they were
trained on; normalization is included.
docs/export.md shows how to route a batch with ONNX Runtime.

Needs onnx and onnxscript, and the checkpoints of the networks.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.policies import add_policy, assemble, parts_of, policy_of, temperature_of
from models import offsets_of
from utils import cli
from utils.checkpoint import CHECKPOINTS, data_of, fingerprint_of, load_parts
from utils.data import DataSet
from utils.files import UserError, replacing, shown, try_folder
from utils.safe_load import brief

OUT = Path("runs/onnx")  # for the .onnx files and routing.json
PACKAGES = "onnx onnxscript onnxruntime"  # onnxruntime is only needed to run the files


class FromPixels(nn.Module):
    """Normalization, then `net`: uint8 (N, S, S, 3) -> output of `net`."""

    def __init__(self, net: nn.Module, data: DataSet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(data.mean) * 255)
        self.register_buffer("std", torch.tensor(data.std) * 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(((images - self.mean) / self.std).permute(0, 3, 1, 2))


def onnx_bytes(net: nn.Module, facts: dict[str, Any]) -> bytes:
    """Convert a network to the content of an ONNX file.

    The input is `images`, uint8 (N, S, S, 3). The output is `logits`, float32 (N, classes), or
    (N, students) for the selector. N is dynamic.

    Args:
        net, facts: a network and its checkpoint dictionary, from `load_network`.
    """
    data = data_of(facts)
    program = torch.onnx.export(
        FromPixels(net, data).eval(),
        (torch.zeros(2, data.size, data.size, 3, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "N"},),
        dynamo=True,
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # contain source code lines and local paths
    return program.model_proto.SerializeToString()


def check_packages() -> None:
    """Raise UserError if a package for the export is missing or broken."""
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except Exception as error:  # one built for another protobuf or NumPy raises any type
            said = brief(f"{type(error).__name__}: {error}")
            raise UserError(
                f"{package} cannot be imported ({said}): pip install --upgrade {PACKAGES}"
            ) from error


def main() -> None:
    parser = cli.Parser(description=__doc__)
    add_policy(parser, "which networks to export")
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=CHECKPOINTS,
        metavar="PATH",
        help="folder of the .pth files (default: checkpoints)",
    )
    cli.add_out(parser, OUT, "the .onnx files and routing.json")
    args = parser.parse_args()
    policy = policy_of(parser, args)
    check_packages()
    try_folder(args.out)

    parts = load_parts(lambda file: args.checkpoint_dir / file, parts_of(policy))
    system = assemble(policy, parts, {name: net for name, (net, _) in parts.items()})
    last = tuple(parts) if policy == "selector" else system.ran[-1]
    networks = {name: parts[name] for name in last}
    students = [name for name in networks if name != "selector"]
    cli.announce(f"Exporting {', '.join(networks)}", policy=args.policy, writes=shown(args.out))
    routing = {
        "policy": args.policy,
        "students": students,
        "thresholds": list(system.thresholds),
        "classes": networks[students[0]][1]["classes"],
        "temperature": {arch: temperature_of(networks[arch][1]) for arch in students},
        "weights": {name: fingerprint_of(net) for name, (net, _) in networks.items()},
    }
    if args.policy == "selector":  # JSON has no infinity
        routing["offsets"] = offsets_of(system.thresholds).clamp(-1e9, 1e9).tolist()
    if args.policy == "cascade":
        routing["alone"] = system.net.alone
    files = {f"{arch}.onnx": onnx_bytes(*network) for arch, network in networks.items()}
    files["routing.json"] = json.dumps(routing, indent=1).encode()
    for name, content in files.items():
        with replacing(args.out / name) as file:
            file.write(content)
        print(f"wrote {shown(args.out / name)}, {len(content):,} bytes")


if __name__ == "__main__":
    cli.run(main)
