"""A stand-in for trtexec: reads the ONNX file that it is given, pretends that every node of a unit is a layer, and
writes the files that trtexec would.
"""

import sys
from pathlib import Path

import onnx
from trtexec_files import conv, other, write_build

US = {"fp16": 10.0, "int8": 4.0}


def layers_of(path, batch):
    """Layers of an engine, and the time of each: units, the pairs that stand between them, and residual sums."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    dims = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.output)
    }
    dims |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    sizes = {i.name: list(i.dims) for i in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    layers, times = [], []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            held = "int8" if node.input[1] in makers else "fp16"  # its weight is dequantised, hence both are
            shapes = [
                (batch, *(dims.get(name) or [0, 1])[1:], 1, 1)[:4] for name in (node.input[0], node.output[0])
            ]
            weight = makers.get(node.input[1])
            size = sizes[weight.input[0] if weight is not None else node.input[1]]
            about = {"Kernel": (*size, 1, 1)[2:4], "Metadata": f"[ONNX Layer: {node.name}]"}
            layers.append(
                conv(
                    node.name,
                    (node.input[0], shapes[0], held),
                    (node.output[0], shapes[1], "fp16"),
                    size[0],
                    **about,
                )
            )
            times.append(US[held])
        elif node.op_type == "QuantizeLinear":
            shape = (batch, *dims[node.output[0]][1:])
            ends = ((node.input[0], shape, "fp16"), (node.output[0], shape, "int8"))
            layers.append(other(node.name, "Reformat", *ends, Origin="QDQ"))
            times.append(1.0)
        elif node.op_type == "Add":
            names = [*node.input[:2], node.output[0]]
            types = ["int8" if makers[n].op_type == "DequantizeLinear" else "fp16" for n in names[:2]]
            shape = (batch, *dims[names[2]][1:])
            sum_ = other(node.name, "PointWise", (names[0], shape, types[0]), (names[2], shape, "fp16"))
            sum_["Inputs"].append(
                other("", "", (names[1], shape, types[1]), (names[2], shape, "fp16"))["Inputs"][0]
            )
            layers.append(sum_)
            times.append(3.0 - types.count("int8"))
    return layers, times


def main(arguments, folder):
    """As trtexec is called by the scripts, in a folder."""
    given = dict(a.removeprefix("--").partition("=")[::2] for a in arguments)
    batch = int(given["shapes"].partition(":")[2].partition("x")[0])
    layers, times = layers_of(folder / given["onnx"], batch)
    name = given["exportLayerInfo"].removesuffix(".layers.json")
    write_build(folder, name, layers, times, 20 + sum(times))
    print((folder / f"{name}.log").read_text())  # the script sends it to the very file


if __name__ == "__main__":
    main(sys.argv[1:], Path.cwd())
