"""`python -m mpsearch`, the same as the command `mpsearch`."""

from mpsearch.cli import main

if __name__ == "__main__":
    main()
