"""What goes to a device in one file, and what it does there."""
