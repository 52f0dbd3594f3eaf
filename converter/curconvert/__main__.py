"""`python -m curconvert`."""

from curconvert.cli import main

main(prog_name="curconvert")
