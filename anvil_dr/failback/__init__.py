"""A job turned round: a server that ran on the DR box goes back to its node."""
