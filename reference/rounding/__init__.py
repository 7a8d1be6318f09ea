"""The rules by which runtimes round exact integer results to the steps of an output."""
