"""Rewards of texts: a registry of tasks, their scorers, and verl's reward manager over them."""
