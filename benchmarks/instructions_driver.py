"""Run the calls whose instructions are counted: python -m benchmarks.instructions_driver SWITCH, inside callgrind.

It calls the operators of the CPU backend in float32, with a network half as wide as the paper's, on a small map. Then
it calls fused_mlp with rows that are all alike, and the backward operators for each entry of WANTED. SWITCH is a
library with `start`, `stop` and `dump`. The first two keep the import of PyTorch uncounted, and so faster. `dump`
writes the counts since the last dump.
"""

import ctypes
import sys

import torch
from torch import Tensor

from benchmarks.common import make_problem, make_queries
from liif_fast.functional import fused_mlp, gather_corners, liif_decode, liif_render
from liif_fast.ops import attend, conv3x3, decode, fourier, mlp, modulated

SIDE, QUERIES, CHANNELS, HIDDEN = 12, 96, 32, (128,) * 4
# Whether the gradient of a backward operator's input (the rows that it reads) is wanted, and those of its parameters.
WANTED = {"all": (True, True), "input": (True, False), "parameters": (False, True)}
BACKWARD = (decode, mlp, fourier, modulated, attend, conv3x3)  # they define the operators called below


def go_back(coord: Tensor, cell: Tensor, weights: list[Tensor], biases: list[Tensor], which: tuple[bool, bool]) -> None:
    """Call every backward operator for the gradients `which`, with all activations saved."""
    ops, of_input, of_layers = torch.ops.liif_fast, which[0], [which[1]] * 2
    grad, rows, latents, wide = torch.ones(1, QUERIES, 3), 4 * QUERIES, SIDE * SIDE, HIDDEN[0]
    p, saved = torch.ones(1, SIDE, SIDE, 2 * wide), torch.ones(rows, 3 * wide)
    later, wanted = (weights[1:], biases[1:]), [of_input, which[1], *(of_layers * 4), False]
    narrow = p[..., :wide].contiguous()
    ops.decode_backward(grad, narrow, coord, cell, weights, biases, saved, True, wanted, None)
    ops.fourier_decode_backward(grad, p, coord, cell, torch.ones(wide // 2, 2), *later, saved, wanted, None)
    ops.fused_mlp_backward(torch.ones(rows, 3), saved[:, :wide], *later, saved, wanted[:1] + wanted[2:-1], None)
    layers = [torch.ones(wide, wide + 4), weights[-1]], [biases[0], biases[-1]]
    p = torch.ones(1, SIDE, SIDE, 3 * wide)
    ops.modulated_decode_backward(grad, p, coord, cell, *layers, True, [of_input, *(of_layers * 2), False], None)
    table, tokens = torch.ones(latents, wide * 2 + 6), [torch.ones(wide // 2, wide // 2 + 1)] * 3
    tokens.append(torch.ones(1, wide // 2 + 1))
    rest = table, torch.ones(3, table.shape[1]), tokens, [coord], (1, SIDE, SIDE), False, 8
    ops.attend_corners_backward(grad, torch.ones(1, QUERIES, 4), *rest, [of_input, *([which[1]] * 5)], None)
    x, weight = maps()
    ops.conv3x3_backward(x, x, weight, x, False, [of_input, *([which[1]] * 2)], True)


def maps() -> tuple[Tensor, Tensor]:
    """Return a map for `conv3x3`, with a border of tiles that it does not fill, and a weight."""
    x = torch.ones(1, CHANNELS, 2 * SIDE, 2 * SIDE + 1).contiguous(memory_format=torch.channels_last)
    return x, torch.ones(CHANNELS, CHANNELS, 3, 3)


def main() -> None:
    assert BACKWARD
    switch = ctypes.CDLL(sys.argv[1])
    torch.set_num_threads(1)
    feat, weights, biases = make_problem((SIDE, SIDE), channels=CHANNELS, hidden=HIDDEN)
    feat.requires_grad_()
    coord, cell = make_queries(1, QUERIES, SIDE)
    switch.start()
    with torch.no_grad():
        x, _ = gather_corners(feat, coord, cell, backend="cpu")
        fused_mlp(x, weights, biases, backend="cpu")
        liif_render(feat, (2 * SIDE, QUERIES // 2 // SIDE), weights, biases, backend="cpu")
        image, weight = maps()
        conv3x3.convolve3x3(image, weight, None, image, False, True)
    out = liif_decode(feat, coord, cell, weights, biases, backend="cpu")
    torch.autograd.grad(out.sum(), (feat, *weights, *biases))
    switch.dump()
    alike = x[:, :1, :1].expand_as(x).contiguous()
    with torch.no_grad():
        fused_mlp(alike, weights, biases, backend="cpu")
    switch.dump()
    for which in WANTED.values():
        go_back(coord, cell, weights, biases, which)
        switch.dump()
    switch.stop()


if __name__ == "__main__":
    main()
