"""Which images belong together, which number each set has next, and where a new image goes."""
