"""What the admin sees."""
