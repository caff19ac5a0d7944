"""What node and DR box say to each other, and how bytes become digests, differences and frames."""
