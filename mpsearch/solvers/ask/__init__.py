"""Questions beside the optimum: the next best, prices, ranges, fronts over two resources."""
