"""Hold the Triton sources, one operator per file; import them as ``liif_fast.kernels``, never as ``kernels``."""
