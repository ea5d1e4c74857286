"""What a run's folder tells about its past: who computed which step, and where the time went.

It only reads (`reading`), tolerates lines that are being written, and needs no torch, so that it
works beside a running training and without one. Read in this order: `story` (attempts, sessions,
islands), `goodput` (useful time and lost time by cause), `answers` (what `atoll ledger` says).
"""
