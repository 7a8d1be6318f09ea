"""The one-file replay: a program that checks an export where it is started."""
