"""Compiled loops: a step's graph as LLVM code that runs all T steps."""
