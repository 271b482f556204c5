"""Our own GPU kernels: weights of 1 to 8 bits on int8, fp16 or bf16 activations. Importing this package
imports neither torch nor Triton.

`layout` packs codes into bit planes, `device_code` holds the Triton kernels, `device_weights` what they do
with the planes; `tiles` chooses their tile sizes; `unit` is a linear layer or a convolution ready to run,
with the quantisers of `grids`.
"""
