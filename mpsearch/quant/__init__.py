"""Quantiser arithmetic: affine quantisers, observers, rounding, quantised layers and bit packing. Knows no
model and no search.
"""

from mpsearch.quant.affine import (
    ActivationQuantizer,
    AffineParams,
    QuantizedTensor,
    affine_params,
    dequantize,
    fake_quantize,
    quantize,
)
from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.layers import QuantConv2d, QuantLayer, QuantLinear, install, wrap, wrap_units
from mpsearch.quant.observers import OBSERVERS, Observer
from mpsearch.quant.packing import pack, packed_nbytes, unpack
from mpsearch.quant.products import QuantProduct, product_names, wrap_products
from mpsearch.quant.regions import LogParams, TwoRegionParams
from mpsearch.quant.states import UnitState, affine_input, in_integers
from mpsearch.quant.weightless import weightless_names

__all__ = [
    "OBSERVERS",
    "ActivationQuantizer",
    "AffineParams",
    "InputQuantizer",
    "LogParams",
    "Observer",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantProduct",
    "QuantizedTensor",
    "TwoRegionParams",
    "UnitState",
    "affine_input",
    "affine_params",
    "dequantize",
    "fake_quantize",
    "in_integers",
    "install",
    "pack",
    "packed_nbytes",
    "product_names",
    "quantize",
    "unpack",
    "weightless_names",
    "wrap",
    "wrap_products",
    "wrap_units",
]
