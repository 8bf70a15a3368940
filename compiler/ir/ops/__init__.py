"""Every operator taskgraft knows; importing this package fills `compiler.ir.op.Op.registry`."""

from compiler.ir.ops import activation as activation
from compiler.ir.ops import binary as binary
from compiler.ir.ops import cast as cast
from compiler.ir.ops import conv as conv
from compiler.ir.ops import expand as expand
from compiler.ir.ops import grid as grid
from compiler.ir.ops import index as index
from compiler.ir.ops import linear as linear
from compiler.ir.ops import logic as logic
from compiler.ir.ops import norm as norm
from compiler.ir.ops import pool as pool
from compiler.ir.ops import recurrent as recurrent
from compiler.ir.ops import reduce as reduce
from compiler.ir.ops import resize as resize
from compiler.ir.ops import scatter as scatter
from compiler.ir.ops import shape as shape
from compiler.ir.ops import slicing as slicing
from compiler.ir.ops import softmax as softmax
from compiler.ir.ops import topk as topk
from compiler.ir.ops import unary as unary
