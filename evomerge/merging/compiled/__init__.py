"""The CPU's merge kernels, compiled: one pass over memory, block by block in the first-level cache.

They do what the kernels of `kernels`, `sce` and `selection` do in plain torch, which remain the reference, serve
GPUs and take what is refused here (sources of different dtypes, DELLA's ranks). Arithmetic is float32 without
contraction or reordering, so a result depends neither on the number of threads nor on where in a run a tensor lies.
"""
