"""The page's server: bound to this machine, behind a gate, answering the questions of an `Exploration`.

Reading order: gate -> api -> openapi -> serving.
"""
