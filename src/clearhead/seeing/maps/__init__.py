"""Exact weights from queries, keys and normalisers, and what can be counted of them without a query x key table.

Reading order: formula -> products -> sight -> workers -> tiles -> pyramid -> kernels -> statistics -> habits ->
weighing -> rollout.
"""
