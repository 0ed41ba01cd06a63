"""Capacity: what a deployment does under load.

`step_times` turns kernels into seconds of an engine's iterations, `traffic` into requests what clients do, `scheduler`
is one engine that batches continuously, `replay` lets requests meet engines, `serving` asks for TTFT and TPOT.
"""
