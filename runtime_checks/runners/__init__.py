"""One file a runtime, one interface."""
