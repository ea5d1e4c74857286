"""Exact training over a changing fleet: the pilot, the islands and the arithmetic they share.

Read in this order: `scalars` (what the pilot computes), `exponents` (the scale of the integer
sums), `accumulator` (gradients as integers), `digests`, `optimizer`, `lane` (one grain), `island`
(one process), `pilot` (one step after another), `session` (from a recipe to a finished run),
`audit`.
"""
