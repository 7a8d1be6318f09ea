"""Files of any converter: their interface, their precision, one against another."""
