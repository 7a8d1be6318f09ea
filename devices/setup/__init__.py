"""Downloads, caches and pins of what emulated devices and browsers need."""
