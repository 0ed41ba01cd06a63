"""One plain implementation per mechanism, named like its file in `costmodel/mixers`.

Each file has

counted(d, D, step)   runs one layer on random float64 data, with `@` for every matrix product that the
                      formula needs and no other (row by row, so that masked pairs are never computed), and
                      recurrences and convolutions inside `validation.counting.vector()`
compare(d)            the largest relative difference between that plain form and an independent one
                      (dense attention with a mask, or a step-by-step recurrence), in float64
"""
