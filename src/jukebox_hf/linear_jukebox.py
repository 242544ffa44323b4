"""Linear layers that, compiled for a CPU, decode about as fast as memory gives them their matrices."""

import torch
from torch import Tensor, nn

# An x86 CPU's matrix unit, which multiplies tiles in bfloat16 and in int8.
HAS_AMX = torch.cpu._is_amx_tile_supported()
# Beyond it the libraries' usual products are as fast.
MAX_DECODING_ROWS = 32


class JukeboxLinear(nn.Linear):
    """A linear layer that, compiled for a few rows on a CPU, reads its matrix nearly as fast as memory gives it.

    Decoding is nothing but that. The libraries' products of a matrix and a vector reach half of it on some CPUs, and
    those with a few rows a quarter, as they pack the matrix first.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        # First, and by itself: in small models what else is looked at would take 3 % of a step.
        if not torch.compiler.is_compiling():
            return super().forward(hidden_states)
        num_rows = hidden_states.numel() // self.in_features
        product = None
        if hidden_states.device.type == "cpu" and num_rows <= MAX_DECODING_ROWS:
            product = self._decode(hidden_states.reshape(num_rows, self.in_features))
        if product is None:
            return super().forward(hidden_states)
        if self.bias is not None:
            product = product + self.bias.float()
        return product.to(hidden_states.dtype).view(*hidden_states.shape[:-1], self.out_features)

    def _decode(self, rows: Tensor) -> Tensor | None:
        """The product of each row `(rows, in_features)` with the matrix, or none where the usual one is best."""
        weight = self.weight
        # torchao's int8 weights are numbers and a scale for each row; what it packs has products of its own.
        is_int8 = getattr(getattr(weight, "qdata", None), "dtype", None) == torch.int8
        if not (is_int8 or type(weight) is nn.Parameter):
            return None
        matrix = weight.qdata if is_int8 else weight
        if is_int8 and HAS_AMX:
            product = tiled_int8_product(matrix, rows)
        elif len(rows) == 1:
            product = summed_product(matrix, rows)
        elif HAS_AMX and matrix.dtype == torch.bfloat16:
            # On its left side a matrix unit reads a matrix as it lies, where on the right it would be packed first.
            product = (matrix @ rows.T).T.float()
        else:
            return None
        return product * weight.scale.float().flatten() if is_int8 else product


def summed_product(matrix: Tensor, row: Tensor) -> Tensor:
    """`row @ matrix.T` of one row in fp32, which the compiler fuses to one pass over the matrix."""
    # A strided view needs its source in memory; else the compiler computes the norm before anew for every row.
    vector = row.float().flatten().as_strided((matrix.shape[1],), (1,))
    return (matrix.float() * vector).sum(-1)[None]


def tiled_int8_product(matrix: Tensor, rows: Tensor) -> Tensor:
    """`rows @ matrix.T` of an int8 matrix in whole numbers, the rows as two digits of 8 bits each.

    Twice the columns take a matrix unit hardly longer, and 16 bits for a row's largest number are finer than bfloat16.
    """
    rows = rows.float()
    largest = 127 * 256 + 127
    step = (rows.abs().amax(-1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (rows / step).round().int()
    high = (numbers + 128) >> 8
    digits = torch.cat([high, numbers - (high << 8)]).to(torch.int8)
    high_product, low_product = torch._int_mm(matrix, digits.T).T.float().chunk(2)
    return (high_product * 256 + low_product) * step
