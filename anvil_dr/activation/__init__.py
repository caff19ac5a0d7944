"""The worst day: what is there, what can be booted in which order, the boot itself, and the way back."""
