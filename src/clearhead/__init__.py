"""See what attention does, in any Transformer, while it runs at full speed.

Reading order: attention -> derivation -> positions -> block -> models/bert -> training/objectives -> training/loop
-> classification -> checkpoints/mapping -> seeing/recorder -> seeing/maps -> cli.
"""
