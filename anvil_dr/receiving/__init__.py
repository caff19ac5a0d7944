"""The DR box at work: sessions with nodes, and each job as a transaction."""
