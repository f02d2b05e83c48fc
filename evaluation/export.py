"""Export the networks to ONNX files, for use without PyTorch.

    python -m evaluation.export --out runs/onnx
    python -m evaluation.export --out runs/onnx --policy cascade
    python -m evaluation.export --out runs/int8 --policy cascade --int8    a quarter of the size
    python -m evaluation.export --out runs/one --policy cascade --one-file

Writes NAME.onnx for each network of the policy, and routing.json with what is needed to choose
between them; with --one-file, only POLICY.onnx, which takes one image at a time and chooses by
itself. Images are uint8 (N, S, S, 3), of the size S of the training; normalization is included.
docs/export.md shows how to run the files with ONNX Runtime.

Needs onnx and onnxscript, and the checkpoints of the networks; --int8 also needs onnxruntime and
the training images.
"""

import contextlib
import importlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation.policies import (
    THRESHOLDS,
    System,
    add_policy,
    assemble,
    parts_of,
    policy_of,
    temperature_of,
)
from models import MultiStudent
from utils import cli
from utils.checkpoint import FILES, check_data, data_of, fingerprint_of, load_parts
from utils.data import DataSet, load_splits
from utils.files import UserError, replacing, shown, try_folder

OUT = Path("runs/onnx")  # for the .onnx files and routing.json
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the last to run the files, and for --int8
CALIBRATION = 1024  # training images for --int8


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


def eight_bit(content: bytes, images: np.ndarray) -> bytes:
    """Quantize an ONNX file from `onnx_bytes` with ONNX Runtime.

    Convolutions and linear layers get int8 weights, with a scale for each output channel, and uint8
    inputs, whose ranges hold 99.999 % of the values on some images. All else stays float32.

    Args:
        images: uint8 (N, S, S, 3), of the training.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.batches = iter([{"images": images[start_index:end_index]}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        path = Path(folder) / "network.onnx"
        path.write_bytes(content)
        quant_pre_process(path, path, skip_symbolic_shape=True)
        quantization.quantize_static(
            path,
            path,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibStridedMinMax": math.gcd(len(images), 64)},  # images per step
        )
        return path.read_bytes()


def one_file(system: System, contents: Mapping[str, bytes], about: str) -> bytes:
    """Join the networks of a selector or cascade in one ONNX file, for one image at a time.

    The input is `images`, uint8 (1, S, S, 3). The outputs are those of `system.net`: `logits`,
    float32 (1, classes), and `choice`, int64 (1,). Only the networks that the image needs run.

    Args:
        system: from `assemble`.
        contents: the files of its networks, from `onnx_bytes` or `eight_bit`, by name.
        about: text that is stored in the file, as its metadata "routing".
    """
    from onnx import helper, load_from_string, parser

    models = {name: load_from_string(content) for name, content in contents.items()}
    students = [archs[-1] for archs in system.answered]
    first, count = models[students[0]], len(students)
    ends = first.graph.input[0], first.graph.output[0]
    size, classes = (end.type.tensor_type.shape.dim[1].dim_value for end in ends)
    version = next(each.version for each in first.opset_import if not each.domain)
    floats = f"float[1, {classes}]"
    nodes = f"""
            logits0 = Constant<value = {floats} {{{", ".join("0" * classes)}}}>()
            choice0 = Constant<value = int64[1] {{0}}>()"""
    routed = isinstance(system.net, MultiStudent)
    if routed:
        offsets = ", ".join(map(str, _offsets(system)))
        nodes += f"""
            scores = networks.selector(images)
            offsets = Constant<value = float[{count}] {{{offsets}}}>()
            sums = Add(scores, offsets)
            best = ArgMax<axis = 1, keepdims = 0>(sums)"""
    for k, student in enumerate(students):  # if it runs, it changes logits and choice
        nodes += f"""
            number{k} = Constant<value = int64[1] {{{k}}}>()"""
        if routed:
            nodes += f"""
            runs{k} = Equal(best, number{k})"""
        elif k == 0:
            nodes += """
            runs0 = Constant<value = bool {1}>()"""
        else:
            nodes += f"""
            chances{k} = Softmax(logits{k})
            confidence{k} = ReduceMax<keepdims = 0>(chances{k})
            threshold{k} = Constant<value = float {{{system.thresholds[k - 1]}}}>()
            unsure{k} = Less(confidence{k}, threshold{k})
            runs{k} = And(runs{k - 1}, unsure{k})"""
        earlier = [f"logits{k}"] * (len(system.answered[k]) - 1)  # a mean of all that answered
        nodes += f"""
            choice{k + 1} = Where(runs{k}, number{k}, choice{k})
            logits{k + 1} = If(runs{k})<
                then_branch = run{k}() => ({floats} answer{k}) {{
                    own{k} = networks.{student}(images)
                    answer{k} = Mean({", ".join([f"own{k}", *earlier])}) }},
                else_branch = pass{k}() => ({floats} same{k}) {{
                    same{k} = Identity(logits{k}) }}>"""
    model = parser.parse_model(f"""
        <ir_version: {first.ir_version}, opset_import: ["": {version}, "networks": 1]>
        system(uint8[1, {size}, {size}, 3] images) => ({floats} logits, int64[1] choice) {{{nodes}
            logits = Identity(logits{count})
            choice = Identity(choice{count}) }}""")
    for name, each in models.items():
        weights = [
            helper.make_node("Constant", [], [weight.name], value=weight)
            for weight in each.graph.initializer
        ]
        body, opsets = [*weights, *each.graph.node], [helper.make_opsetid("", version)]
        model.functions.append(
            helper.make_function("networks", name, ["images"], ["logits"], body, opsets)
        )
    helper.set_model_props(model, {"routing": about})
    return model.SerializeToString()


def _offsets(system: System) -> list[float]:
    """What is added to the selector's logits; JSON and ONNX's text have no infinity."""
    return system.net.offsets.clamp(-1e9, 1e9).tolist()


def check_packages(packages: Sequence[str]) -> None:
    """Raise UserError if a package for the export is missing or broken."""
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # one built for another protobuf or NumPy raises any type
            raise UserError(
                f"{package} cannot be imported ({error!r}): "
                f"pip install --upgrade {' '.join(PACKAGES)}"
            ) from error


def main() -> None:
    parser = cli.Parser(description=__doc__)
    add_policy(parser, "which networks to export")
    what = "quantize with ONNX Runtime; see docs/export.md"
    parser.add_argument("--int8", action="store_true", help=what)
    what = "--policy selector or cascade: one file for one image at a time"
    parser.add_argument("--one-file", action="store_true", help=what)
    cli.add_places(parser)
    cli.add_out(parser, OUT, "the .onnx files and routing.json")
    args = parser.parse_args()
    policy = policy_of(parser, args)
    if args.one_file and args.policy not in THRESHOLDS:
        parser.error(f"--one-file: --policy {args.policy} does not choose, leave it out")
    check_packages(PACKAGES if args.int8 else PACKAGES[:2])
    try_folder(args.out)

    parts = load_parts(lambda file: args.checkpoint_dir / file, parts_of(policy))
    system = assemble(policy, parts, {name: net for name, (net, _) in parts.items()})
    last = tuple(parts) if policy == "selector" else system.ran[-1]
    networks = {name: parts[name] for name in last}
    students = [name for name in networks if name != "selector"]
    if args.int8:
        first = networks[students[0]][1]
        train = load_splits(args.data, CALIBRATION, seen_by=first)[0]
        check_data(args.checkpoint_dir / FILES[students[0]], first, train.data)
    precision = "int8" if args.int8 else "float32"
    print(f"exporting {', '.join(networks)} in {precision} to {shown(args.out)}", flush=True)
    routing = {
        "policy": args.policy,
        "students": students,
        "thresholds": list(system.thresholds),
        "classes": networks[students[0]][1]["classes"],
        "temperature": {arch: temperature_of(networks[arch][1]) for arch in students},
        "weights": {name: fingerprint_of(net) for name, (net, _) in networks.items()},
    }
    if args.policy == "selector":
        routing["offsets"] = _offsets(system)
    if args.policy == "cascade":
        routing["alone"] = system.net.alone
    contents = {name: onnx_bytes(*network) for name, network in networks.items()}
    if args.int8:
        images = train.images.numpy()
        contents = {name: eight_bit(content, images) for name, content in contents.items()}
    about = json.dumps(routing, indent=1)
    if args.one_file:
        files = {f"{args.policy}.onnx": one_file(system, contents, about)}
    else:
        files = {f"{name}.onnx": content for name, content in contents.items()}
        files["routing.json"] = about.encode()
    for name, content in files.items():
        with replacing(args.out / name) as file:
            file.write(content)
        print(f"wrote {shown(args.out / name)}, {len(content):,} bytes")


if __name__ == "__main__":
    cli.run(main)
