"""The fold: every norm of a network moved exactly into its neighbours, and the proof of it."""
