"""One module per group of endpoints; each has a `router`.

Owns the order in which a request is checked, built, submitted and answered; knows no event of the
engine in detail. Invariant: whatever can be refused is refused before the first byte of a stream.
"""
