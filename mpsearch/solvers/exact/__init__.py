"""Exact methods on bare rows, pairs and limits: dynamic programmes, bounds, and HiGHS."""
