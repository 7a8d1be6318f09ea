"""Code that the host sends to a device and that runs there."""
