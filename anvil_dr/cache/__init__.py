"""Cache drives as the kernel and udev know them: found, looked at, mounted, watched."""
