"""`python -m instil` is the command `instil`."""

from instil.cli import main

main()
