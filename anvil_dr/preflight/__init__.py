"""What would keep a server from booting here, asked and judged before anything is booted."""
