"""Tables in the form that solvers use: groups of layers that share a choice, pairs between them, costs as
integers.
"""
