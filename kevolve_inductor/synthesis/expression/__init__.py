"""Pointwise expressions: built from ATen graphs, printed as C++ and as Triton."""

from .builder import ExpressionBuilder, is_constant, is_expressible, is_pointwise, is_view
from .cpp import CPP_PRELUDE, CppPrinter
from .expression import Expr
from .helpers import used_only
from .places import writes_one_place
from .triton import TRITON_PRELUDE, TritonPrinter

__all__ = [
    "CPP_PRELUDE",
    "CppPrinter",
    "Expr",
    "ExpressionBuilder",
    "TRITON_PRELUDE",
    "TritonPrinter",
    "is_constant",
    "is_expressible",
    "is_pointwise",
    "is_view",
    "used_only",
    "writes_one_place",
]
