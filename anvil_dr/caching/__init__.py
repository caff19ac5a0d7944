"""Sets that arrive on cache drives first, so that the last one in the store is not written over meanwhile."""
