"""Every operator taskgraft knows; importing this package fills `compiler.ir.op.Op.registry`."""

from compiler.ir.ops import conv as conv
