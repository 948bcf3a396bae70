"""Triton sources, one operator a file; imported as ``liif_fast.kernels``, never as ``kernels``."""
