"""Own Triton kernels, small and correct, for operators and probes that no package serves everywhere.

One file per kernel: the kernel, a function that launches it on torch tensors, and `examples`, launches in the shapes
of published models that the compile check goes through. Importing this package needs neither torch nor triton;
importing one of its modules needs both.
"""
