"""The files of an export, with readers and writers that need only NumPy and travel to devices."""
