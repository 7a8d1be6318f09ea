"""The files of an export, as both sides know them: export writes, the checks read."""
