"""Heads and links changed while a model runs, and what that moves.

Reading order: editor -> kinds -> edits -> effects -> inputs -> target -> key_axes -> cases -> removals.
"""
