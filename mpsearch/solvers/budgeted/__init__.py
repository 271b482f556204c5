"""What is exact under several budgets, or with pairs that reach far: bounds first, then HiGHS; tabu search
for a start.
"""
