"""The one-file replay: a zip application that checks an export where it is started."""
