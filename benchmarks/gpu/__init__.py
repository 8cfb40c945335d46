"""``make gpu``: build, test, verify, check memory and measure on a machine with a GPU, in under ten minutes."""
