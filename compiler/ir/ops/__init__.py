"""Every operator taskgraft knows; importing this package fills `compiler.ir.op.Op.registry`."""

from compiler.ir.ops import binary as binary
from compiler.ir.ops import conv as conv
from compiler.ir.ops import shape as shape
from compiler.ir.ops import unary as unary
