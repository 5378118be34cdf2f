"""Runs CUDA C kernels on the host and reports what a GPU would not: see README.md."""

from emulator.build import BuildError, missing_tools
from emulator.launch import KINDS, NO_MUTANT, ORDERS, KernelFault, Module, Report, compile

__all__ = [
    "KINDS",
    "NO_MUTANT",
    "ORDERS",
    "BuildError",
    "KernelFault",
    "Module",
    "Report",
    "compile",
    "missing_tools",
]
