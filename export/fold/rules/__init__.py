"""The rules of the fold, one family a file. `passes.RULES` lists them in order."""
