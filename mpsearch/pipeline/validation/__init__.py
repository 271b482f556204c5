"""Objectives against the true loss: ranks over many sizes, and the loss of their exact optima."""
