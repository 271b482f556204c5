"""The seven steps of a run, a file each; each gives what the next one takes."""
