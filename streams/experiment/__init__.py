"""Comparing refresh policies: what an arm is, what came of it, and what may be concluded."""
