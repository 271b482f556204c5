"""One study, many processes: where it lies, who leads it, who measures, and who is dead."""
