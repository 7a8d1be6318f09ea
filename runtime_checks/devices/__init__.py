"""One file a transport, one interface."""
