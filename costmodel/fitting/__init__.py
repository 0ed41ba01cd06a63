"""From measured rows to parameters, and from parameters to an account of how right they are.

series: what a table holds, as kernels with measured seconds. silicon: readers of measured tables. splits: which points
a fit may see. least_squares: the fit. Everything here needs the `fit` extra (scipy, pyarrow, scikit-learn).
"""
