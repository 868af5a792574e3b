"""Cases in, weights out."""
